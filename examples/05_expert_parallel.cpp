// SPDX-License-Identifier: BSD-3-Clause
// A model of your own over several processes: each has its own tokens, pairs of them share the experts,
// the rest of the model is on all, and each steps a part of it (ZeRO-1). The experts compute in FP8, and
// codes travel. Start it with
//   torchrun --no-python --nproc-per-node 4 build/cpu/examples/05_expert_parallel
// or by mpirun or srun; alone it trains the same model in one process.
#include <torch/torch.h>

#include <cstdio>
#include <stdexcept>
#include <vector>

#include "moe8/moe8.h"

namespace {

constexpr int64_t kDim = 64, kHidden = 32, kExperts = 8, kTopK = 2, kTokens = 1024;
constexpr int kSteps = 60;

// x + experts(x), with a linear router.
struct NetImpl : torch::nn::Module {
  explicit NetImpl(const moe8::Group& group) : group_(group) {
    router = register_module("router", torch::nn::Linear(kDim, kExperts));
    // Made for all experts, so that every split starts from the same model.
    const auto part = [&](const torch::Tensor& all) {
      const int64_t own = kExperts / group.size();
      return all.narrow(0, group.rank() * own, own).to(torch::kBFloat16).clone();
    };
    w1 = register_parameter("w1", part(torch::randn({kExperts, 2 * kHidden, kDim}) / 8));
    w2 = register_parameter("w2", part(torch::randn({kExperts, kDim, kHidden}) / 6));
  }

  torch::Tensor forward(const torch::Tensor& x) {
    const moe8::Routing routing =
        moe8::route_tokens(router(x.to(torch::kFloat)), {.top_k = kTopK, .normalize = true});
    return x + moe8::moe_experts_parallel(group_, x, w1, {}, w2, routing.experts, routing.scores);
  }

  // What is whole on every rank, and which of the experts are here.
  std::vector<moe8::ShardedParameter> sharded_parameters() const {
    std::vector<moe8::ShardedParameter> list;
    for (const auto& [name, tensor] : named_parameters().pairs()) {
      moe8::ShardedParameter& p = list.emplace_back();
      p.parameter = {.name = name, .tensor = tensor};
      if (tensor.dim() < 3) continue;
      p.experts = kExperts;
      p.first_expert = group_.rank() * tensor.size(0);
    }
    return list;
  }

  torch::nn::Linear router{nullptr};
  torch::Tensor w1, w2;  // of this rank's experts

 private:
  moe8::Group group_;
};
TORCH_MODULE(Net);

// Tokens x and what the model should make of them: a rotation of the features.
struct Batch {
  torch::Tensor x, y;
};
Batch batch_of(int step, const moe8::Group& group) {
  torch::manual_seed(1000 + step);
  const torch::Tensor all = torch::randn({kTokens, kDim});
  const int64_t own = kTokens / group.size();
  const torch::Tensor x = all.narrow(0, group.rank() * own, own).to(torch::kBFloat16);
  return {x, x.roll(1, /*dims=*/1)};
}

void train(const moe8::Parallel& parallel) {
  const moe8::Group& data = parallel.data();
  torch::manual_seed(1);
  Net net(parallel.expert());
  moe8::quantize_(*net, {{"re:w[12]", moe8::FP8GroupedMMConfig{}}});
  moe8::ShardedOptimizer optimizer(net->sharded_parameters(), {}, data, parallel.expert_data());
  optimizer.set_learning_rate(0.01);
  double first = 0, last = 0;
  for (int step = 0; step < kSteps; ++step) {
    const Batch batch = batch_of(step, data);
    // This rank's part of the mean over all tokens.
    const torch::Tensor loss =
        torch::mse_loss(net->forward(batch.x).to(torch::kFloat), batch.y.to(torch::kFloat)) /
        data.size();
    loss.backward();
    optimizer.accumulate();
    optimizer.clip_gradients();
    optimizer.step();
    const torch::Tensor mean = loss.detach().clone();
    moe8::all_reduce_(data, mean);
    last = mean.item<double>();
    if (step == 0) first = last;
    if (data.rank() == 0 && step % 20 == 19) std::printf("step %d: loss %.4f\n", step + 1, last);
  }
  if (!(last < 0.9 * first)) throw std::runtime_error("the loss did not fall");
}

}  // namespace

int main() {
  try {
    const moe8::Launch launch = moe8::launch_from_environment();
    moe8::Parallel parallel({.layout = {.expert = launch.world % 2 == 0 ? 2 : 1}}, launch);
    train(parallel);
    parallel.shutdown();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
