// SPDX-License-Identifier: BSD-3-Clause
// Quantized weights that are used again: when they are, and that a changed weight never meets an
// old copy, however it was written.
#include "weights/weight_cache.h"

#include <ATen/DLConvertor.h>
#include <c10/core/Allocator.h>
#include <c10/util/ThreadLocalDebugInfo.h>
#include <torch/torch.h>

#include <functional>
#include <memory>
#include <random>
#include <sstream>
#include <thread>

#include "moe8/moe8.h"
#include "testing/compare.h"
#include "testing/fill.h"

namespace moe8 {
namespace {

using testing::same_bits;

// Every test starts and ends with nothing kept, in the mode that a process starts with.
class WeightCaching : public ::testing::Test {
 protected:
  void SetUp() override { reset(); }
  void TearDown() override { reset(); }

  static void reset() {
    set_weight_cache(WeightCache::OFF);
    set_weight_cache(WeightCache::AUTO);
  }
};

// One converted expert weight, as a module, so that optimizers and quantize_ see it.
struct ExpertsImpl : torch::nn::Module {
  ExpertsImpl(int64_t E, int64_t N, int64_t K, at::ScalarType dtype = at::kFloat) {
    weight = register_parameter("weight", (torch::randn({E, N, K}) / 8).to(dtype));
  }
  at::Tensor forward(const at::Tensor& x, const at::Tensor& offs) {
    return at::_grouped_mm(x, weight.transpose(1, 2), offs);
  }
  at::Tensor weight;
};
TORCH_MODULE(Experts);

struct Step {
  at::Tensor x = torch::randn({40, 64}).requires_grad_();
  at::Tensor offs = testing::offs_of({13, 0, 27});

  at::Tensor forward(Experts& experts) const {
    const torch::NoGradGuard no_grad;
    return experts->forward(x, offs);
  }
  at::Tensor forward_with_graph(Experts& experts) const { return experts->forward(x, offs); }
  void train(Experts& experts) const { forward_with_graph(experts).sum().backward(); }
};

Experts converted_experts(const std::string& recipe_name = "fp8_rowwise") {
  torch::manual_seed(3);
  Experts experts(3, 48, 64);
  quantize_(*experts, recipe(recipe_name), [](const auto&, const auto&) { return true; });
  return experts;
}

// What the weight computes without any cache: a copy in memory that no cache has seen.
at::Tensor forward_uncached(Experts& experts, const Step& step,
                            const std::string& recipe_name = "fp8_rowwise") {
  const torch::NoGradGuard no_grad;
  const at::Tensor copy = torch::empty_like(experts->weight).copy_(experts->weight);
  return quantize_then_scaled_grouped_mm(step.x, copy.transpose(1, 2), step.offs,
                                         recipe(recipe_name));
}

struct Counted {
  int64_t hits, misses;
};
Counted count(const std::function<void()>& call) {
  const WeightCacheUse before = weight_cache_use();
  call();
  const WeightCacheUse after = weight_cache_use();
  return {after.hits - before.hits, after.misses - before.misses};
}

TEST_F(WeightCaching, BackwardUsesWhatForwardMade) {
  Experts experts = converted_experts();
  const Step step;
  const Counted counted = count([&] { step.train(experts); });
  EXPECT_EQ(counted.hits, 1);
  EXPECT_EQ(counted.misses, 1);
}

TEST_F(WeightCaching, AutoWaitsForAVisibleUpdate) {
  Experts experts = converted_experts();
  const Step step;
  step.train(experts);
  EXPECT_EQ(count([&] { step.train(experts); }).misses, 1) << "nothing shows how it is updated";
  {
    const torch::NoGradGuard no_grad;
    experts->weight.add_(experts->weight.grad(), -0.01);
  }
  EXPECT_EQ(count([&] { step.train(experts); }).misses, 1) << "it has changed";
  const Counted microbatch = count([&] { step.train(experts); });
  EXPECT_EQ(microbatch.misses, 0);
  EXPECT_EQ(microbatch.hits, 2);
  EXPECT_EQ(count([&] { step.forward(experts); }).hits, 1) << "validation";
}

// The same bits, and nothing is held when a gradient has been computed; a forward that backward
// follows leaves the form that backward reads.
TEST_F(WeightCaching, FormsForOneBackwardGoWithTheirGradient) {
  int64_t kept[2]{};
  const auto train = [&kept](const std::optional<bool>& recomputes) {
    std::optional<FormsForOneBackward> forms;
    if (recomputes) forms.emplace(*recomputes);
    Experts experts = converted_experts();
    torch::manual_seed(5);
    const Step step;
    torch::optim::AdamW adamw(experts->parameters(), 1e-2);
    for (int i = 0; i < 3; ++i) {
      const Counted counted = count([&] { step.train(experts); });
      EXPECT_EQ(counted.misses, 1) << i;
      EXPECT_EQ(counted.hits, 1) << i << ": its own backward";
      if (recomputes || i == 0) {
        EXPECT_EQ(weight_cache_use().bytes, 0) << i;
      }
      adamw.step();
    }
    if (recomputes) {
      const at::Tensor out = step.forward_with_graph(experts);
      kept[*recomputes] = weight_cache_use().bytes;
      EXPECT_EQ(count([&] { step.forward_with_graph(experts); }).hits, 1) << "once more";
      EXPECT_EQ(weight_cache_use().bytes, kept[*recomputes]);
      out.sum().backward();
      EXPECT_EQ(weight_cache_use().bytes, 0);
    }
    return experts->weight.detach().clone();
  };
  const at::Tensor expected = train(std::nullopt);
  EXPECT_TRUE(same_bits(expected, train(false)));
  EXPECT_TRUE(same_bits(expected, train(true)));
  EXPECT_GT(kept[false], 0);
  EXPECT_LT(kept[false], kept[true]);
}

TEST_F(WeightCaching, AnUpdateBeforeAnyBackwardProvesNothing) {
  Experts experts = converted_experts();
  const Step step;
  step.forward(experts);
  {
    const torch::NoGradGuard no_grad;
    experts->weight.copy_(torch::randn_like(experts->weight));  // a checkpoint is loaded
  }
  step.forward(experts);
  EXPECT_EQ(count([&] { step.forward(experts); }).hits, 0);
}

TEST_F(WeightCaching, OnTrustsTheVersionCounter) {
  set_weight_cache(WeightCache::ON);
  Experts experts = converted_experts();
  const Step step;
  EXPECT_EQ(count([&] { step.forward(experts); }).misses, 1);
  EXPECT_EQ(count([&] { step.forward(experts); }).hits, 1);
  clear_weight_cache();
  EXPECT_EQ(count([&] { step.forward(experts); }).misses, 1);
}

TEST_F(WeightCaching, OffKeepsNothing) {
  set_weight_cache(WeightCache::OFF);
  Experts experts = converted_experts();
  const Counted counted = count([&] { Step().train(experts); });
  EXPECT_EQ(counted.hits + counted.misses, 0);
  EXPECT_EQ(weight_cache_use().bytes, 0);
}

TEST_F(WeightCaching, AutoLeavesWeightsAloneThatAreNotConverted) {
  const at::Tensor W = torch::randn({3, 48, 64}).requires_grad_();
  const Step step;
  const Counted counted = count([&] {
    to_fp8_rowwise_then_scaled_grouped_mm(step.x, W.transpose(1, 2), step.offs).sum().backward();
  });
  EXPECT_EQ(counted.hits + counted.misses, 0);
}

// What LibTorch's allocator gave away and did not get back, while this lives, in this thread.
class HeldBytes {
 public:
  HeldBytes() : guard_(c10::DebugInfoKind::PROFILER_STATE, counter_) {}
  int64_t now() const { return counter_->bytes; }

 private:
  struct Counter : c10::MemoryReportingInfoBase {
    void reportMemoryUsage(void*, int64_t size, size_t, size_t, c10::Device) override {
      bytes += size;
    }
    bool memoryProfilingEnabled() const override { return true; }
    int64_t bytes = 0;
  };
  std::shared_ptr<Counter> counter_ = std::make_shared<Counter>();
  c10::DebugInfoGuard guard_;
};

TEST_F(WeightCaching, KeptFormsGoWithTheirWeight) {
  const Step step;
  const auto experts_of = [](bool is_converted) {
    return is_converted ? converted_experts() : Experts(3, 48, 64);
  };
  for (const bool is_converted : {true, false}) {
    set_weight_cache(WeightCache::ON);
    const HeldBytes held;
    {
      Experts experts = experts_of(is_converted);
      const torch::NoGradGuard no_grad;
      to_fp8_rowwise_then_scaled_grouped_mm(step.x, experts->weight.transpose(1, 2), step.offs);
      EXPECT_EQ(weight_cache_use().weights, 1) << is_converted;
      EXPECT_GT(weight_cache_use().bytes, 0) << is_converted;
      EXPECT_GE(held.now(), weight_cache_use().bytes) << is_converted;
    }
    // Asked first: weight_cache_use() clears away what it finds.
    EXPECT_EQ(held.now(), 0) << is_converted << ": without waiting for another weight";
    EXPECT_EQ(weight_cache_use().weights, 0) << is_converted;
    EXPECT_EQ(weight_cache_use().bytes, 0) << is_converted;
  }
}

TEST_F(WeightCaching, KeptFormsGoWithTheConversion) {
  set_weight_cache(WeightCache::ON);
  Experts experts = converted_experts();
  Step().forward(experts);
  ASSERT_EQ(weight_cache_use().weights, 1);
  dequantize_(*experts);
  EXPECT_EQ(weight_cache_use().weights, 0);
}

void train_and_update(Experts& experts, const Step& step) {
  step.train(experts);
  const torch::NoGradGuard no_grad;
  experts->weight.add_(experts->weight.grad(), -0.01);
}

TEST_F(WeightCaching, AnAliasThatLivesKeepsAutoAway) {
  Experts experts = converted_experts();
  const Step step;
  train_and_update(experts, step);
  step.train(experts);
  ASSERT_EQ(count([&] { step.train(experts); }).misses, 0);
  {
    const at::Tensor alias = experts->weight.data();
    train_and_update(experts, step);
    const Counted counted = count([&] { step.train(experts); });
    EXPECT_EQ(counted.misses, 1);
    EXPECT_EQ(counted.hits, 1) << "its own backward";
    EXPECT_EQ(count([&] { step.forward(experts); }).hits, 0);
  }
  EXPECT_EQ(count([&] { step.train(experts); }).misses, 1) << "the alias may have been written";
  EXPECT_EQ(count([&] { step.forward(experts); }).hits, 0) << "and may have been the writer";
  train_and_update(experts, step);
  step.train(experts);
  EXPECT_EQ(count([&] { step.train(experts); }).misses, 0);
}

TEST_F(WeightCaching, AnAliasThatSharesTheCounterIsNoDanger) {
  Experts experts = converted_experts();
  const at::Tensor detached = experts->weight.detach();
  const at::Tensor view = experts->weight[1];
  const Step step;
  train_and_update(experts, step);
  const at::Tensor other_graph = experts->forward(step.x, step.offs);  // saves views of the weight
  EXPECT_GT(count([&] { step.forward(experts); }).hits, 0);
}

// ---- weights that share their memory ----------------------------------------
// Each makes the weight of experts that are not converted yet share its memory, and returns what it
// shares it with: a tensor of the same shape and another version counter.
struct Sharing {
  const char* name;
  std::function<at::Tensor(Experts&)> share;
};

const std::vector<Sharing>& sharings() {
  static const std::vector<Sharing> all = {
      {"data()", [](Experts& e) { return e->weight.data(); }},
      {"a view of data()",
       [](Experts& e) {
         return e->weight.data().view({3, 48, 64});
       }},
      {"set_data() of a part of a flat buffer",
       [](Experts& e) {
         const at::Tensor flat = torch::randn({e->weight.numel() + 64});
         e->weight.set_data(flat.narrow(0, 64, e->weight.numel()).view(e->weight.sizes()));
         return flat.narrow(0, 64, e->weight.numel()).view(e->weight.sizes());
       }},
      {"set_data() of the whole of a flat buffer",
       [](Experts& e) {
         const at::Tensor flat = torch::randn({e->weight.numel()});
         e->weight.set_data(flat.view(e->weight.sizes()));
         return flat.view(e->weight.sizes());
       }},
      {"another parameter tied by set_data()",
       [](Experts& e) {
         Experts other(3, 48, 64);
         other->weight.set_data(e->weight);
         return other->weight;
       }},
      {"set_()", [](Experts& e) { return torch::empty({0}).set_(e->weight.detach()); }},
      {"set_() of its storage",
       [](Experts& e) {
         return torch::empty({0}).set_(e->weight.storage(), 0, {3, 48, 64});
       }},
      {"_unsafe_view",
       [](Experts& e) {
         return at::_unsafe_view(e->weight, {3, 48, 64}).detach();
       }},
      {"from_blob",
       [](Experts& e) {
         const at::Tensor owner = torch::randn_like(e->weight).detach();
         e->weight.set_data(torch::from_blob(
             owner.mutable_data_ptr(), owner.sizes(), [owner](void*) {}, owner.options()));
         return owner;
       }},
      {"DLPack",
       [](Experts& e) {
         const at::Tensor owner = torch::randn_like(e->weight).detach();
         e->weight.set_data(at::fromDLPack(at::toDLPack(owner)));
         return owner;
       }},
  };
  return all;
}

// Writes seen and unseen in turn: the seen ones make the counter look trustworthy.
TEST_F(WeightCaching, NoWriteThroughSharedMemoryMeetsAnOldCopy) {
  for (const Sharing& sharing : sharings()) {
    reset();
    torch::manual_seed(3);
    Experts experts(3, 48, 64);
    const at::Tensor shared = sharing.share(experts);
    ASSERT_EQ(shared.const_data_ptr(), experts->weight.const_data_ptr()) << sharing.name;
    quantize_(*experts, recipe("fp8_rowwise"), [](const auto&, const auto&) { return true; });
    const Step step;
    for (int i = 0; i < 8; ++i) {
      step.train(experts);
      const torch::NoGradGuard no_grad;
      if (i % 3 == 0) {
        experts->weight.mul_(0.9);
      } else {
        at::Tensor(shared).mul_(1.1);
      }
      ASSERT_TRUE(same_bits(forward_uncached(experts, step), step.forward(experts)))
          << sharing.name << ", step " << i;
    }
    const Counted counted = count([&] { step.train(experts); });
    EXPECT_EQ(counted.misses, 1) << sharing.name;
    EXPECT_EQ(counted.hits, 1) << sharing.name << ": backward of the same forward";
  }
}

// Two converted parameters over one memory, whose counters agree by chance.
TEST_F(WeightCaching, TiedWeightsWithEqualCounters) {
  Experts first(3, 48, 64), second(3, 48, 64);
  second->weight.set_data(first->weight);
  for (Experts* experts : {&first, &second}) {
    quantize_(**experts, recipe("fp8_rowwise"), [](const auto&, const auto&) { return true; });
  }
  const Step step;
  for (int i = 0; i < 3; ++i) train_and_update(first, step);
  step.forward(first);
  while (second->weight._version() < first->weight._version()) {
    const torch::NoGradGuard no_grad;
    second->weight.mul_(1.1);
  }
  EXPECT_TRUE(same_bits(forward_uncached(second, step), step.forward(second)));
}

// Weights that came into being in other ways than by a factory are alone in their memory as well.
TEST_F(WeightCaching, WeightsAloneInTheirMemoryAreUsedAgain) {
  const std::vector<std::pair<const char*, std::function<void(Experts&)>>> origins = {
      {"made", [](Experts&) {}},
      {"cast", [](Experts& e) { e->to(at::kBFloat16), e->to(at::kFloat); }},
      {"loaded",
       [](Experts& e) {
         std::stringstream file;
         torch::save(e, file);
         torch::load(e, file);
       }},
      {"set_data()", [](Experts& e) { e->weight.set_data(torch::randn_like(e->weight).detach()); }},
  };
  for (const auto& [name, make] : origins) {
    reset();
    Experts experts(3, 48, 64);
    make(experts);
    quantize_(*experts, recipe("fp8_rowwise"), [](const auto&, const auto&) { return true; });
    const Step step;
    train_and_update(experts, step);
    step.train(experts);
    EXPECT_EQ(count([&] { step.forward(experts); }).hits, 1) << name;
  }
}

// ---- every way to write a weight --------------------------------------------
struct Writer {
  const char* name;
  std::function<void(Experts&)> write;
};

at::TensorList one(const at::Tensor& x) {
  return at::TensorList(&x, 1);
}

void fused_adamw(Experts& experts) {
  const at::Tensor& w = experts->weight;
  const at::Tensor m = torch::zeros_like(w), v = torch::zeros_like(w), steps = torch::ones({});
  const torch::NoGradGuard no_grad;
  at::_fused_adamw_(one(w), one(w.grad()), one(m), one(v), {}, one(steps), 1e-2, 0.9, 0.95, 0.1,
                    1e-8, false, false);
}

void fused_sgd(Experts& experts) {
  const at::Tensor& w = experts->weight;
  const at::Tensor momentum = torch::zeros_like(w);
  const torch::NoGradGuard no_grad;
  at::_fused_sgd_(one(w), one(w.grad()), one(momentum), 0, 0.9, 0.01, 0, false, false, true);
}

template <typename Write>
std::function<void(Experts&)> without_grad(Write write) {
  return [write](Experts& experts) {
    const torch::NoGradGuard no_grad;
    write(experts->weight);
  };
}

const std::vector<Writer>& writers() {
  static const std::vector<Writer> all = {
      {"add_", without_grad([](at::Tensor& w) { w.add_(w.grad(), -0.01); })},
      {"data().add_", without_grad([](at::Tensor& w) { w.data().add_(w.grad(), -0.01); })},
      {"detach().add_", without_grad([](at::Tensor& w) { w.detach().add_(w.grad(), -0.01); })},
      {"a view", without_grad([](at::Tensor& w) { w[1].mul_(1.5); })},
      {"a view of data()", without_grad([](at::Tensor& w) { w.data()[2].mul_(0.5); })},
      {"copy_", without_grad([](at::Tensor& w) { w.copy_(torch::randn_like(w)); })},
      {"out=", without_grad([](at::Tensor& w) { at::add_out(w, w.detach(), w.grad()); })},
      {"set_data", [](Experts& e) { e->weight.set_data(torch::randn_like(e->weight)); }},
      {"set_", without_grad([](at::Tensor& w) { w.set_(torch::randn_like(w)); })},
      {"foreach", without_grad([](at::Tensor& w) { at::_foreach_add_(one(w), one(w.grad())); })},
      {"foreach of data()", without_grad([](at::Tensor& w) {
         const at::Tensor data = w.data();
         at::_foreach_mul_(one(data), 0.9);
       })},
      {"fused AdamW", fused_adamw},
      {"fused SGD", fused_sgd},
      {"AdamW", [](Experts& e) { torch::optim::AdamW(e->parameters(), 1e-2).step(); }},
      {"SGD", [](Experts& e) { torch::optim::SGD(e->parameters(), 1e-2).step(); }},
      {"InferenceMode",
       [](Experts& e) {
         const c10::InferenceMode inference;
         e->weight.mul_(1.1);
       }},
  };
  return all;
}

TEST_F(WeightCaching, NoWriteEverMeetsAnOldCopy) {
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil"}) {
    for (const Writer& writer : writers()) {
      reset();
      Experts experts = converted_experts(name);
      const Step step;
      step.train(experts);
      writers()[0].write(experts);  // so that the cache is in use
      for (int i = 0; i < 3; ++i) {
        step.train(experts);
        writer.write(experts);
        ASSERT_TRUE(same_bits(forward_uncached(experts, step, name), step.forward(experts)))
            << name << ", written by " << writer.name;
        step.train(experts);
      }
    }
  }
}

TEST_F(WeightCaching, RandomSequencesOfWritesAndUses) {
  std::mt19937 random(11);
  Experts experts = converted_experts();
  const Step step;
  step.train(experts);
  const int64_t before = weight_cache_use().hits;
  std::string history;
  for (int i = 0; i < 300; ++i) {
    if (random() % 3 == 0) {
      const Writer& writer = writers()[random() % writers().size()];
      // After these the weight is another tensor's memory, of which AUTO knows nothing yet.
      if (std::string_view(writer.name).starts_with("set_")) continue;
      writer.write(experts);
      history += std::string(writer.name) + "; ";
    } else if (random() % 2 == 0) {
      step.train(experts);
      history += "train; ";
    }
    ASSERT_TRUE(same_bits(forward_uncached(experts, step), step.forward(experts))) << history;
    if (i % 20 == 0) {  // keep it finite
      const torch::NoGradGuard no_grad;
      experts->weight.clamp_(-1, 1);
      experts->weight.mutable_grad().zero_();
    }
  }
  EXPECT_GT(weight_cache_use().hits - before, 100) << "the cache was in use";
}

TEST_F(WeightCaching, GradientsAreTheSameBitsInEveryMode) {
  for (const RecipeInfo& recipe : all_recipes()) {
    if (!is_grouped(recipe.config)) continue;
    std::vector<at::Tensor> grads;
    for (WeightCache mode : {WeightCache::OFF, WeightCache::AUTO, WeightCache::ON}) {
      set_weight_cache(mode);
      Experts experts = converted_experts(recipe.name);
      torch::manual_seed(5);
      const Step step;
      torch::optim::AdamW adamw(experts->parameters(), 1e-2);
      for (int i = 0; i < 3; ++i) {
        step.train(experts);  // two microbatches
        step.train(experts);
        adamw.step();
      }
      grads.push_back(torch::cat({experts->weight.grad().flatten(), step.x.grad().flatten()}));
    }
    EXPECT_TRUE(same_bits(grads[0], grads[1])) << recipe.name;
    EXPECT_TRUE(same_bits(grads[0], grads[2])) << recipe.name;
  }
}

TEST_F(WeightCaching, LinearsAreCachedToo) {
  set_weight_cache(WeightCache::ON);
  torch::nn::Linear linear(64, 32);
  quantize_(*linear, recipe("rowwise"));
  const at::Tensor x = torch::randn({8, 64}).requires_grad_();
  linear->forward(x).sum().backward();
  EXPECT_EQ(count([&] { linear->forward(x).sum().backward(); }).misses, 0);
}

TEST_F(WeightCaching, SeveralThreadsMayUseOneWeight) {
  set_weight_cache(WeightCache::ON);
  Experts experts = converted_experts();
  const Step step;
  const at::Tensor expected = forward_uncached(experts, step);
  std::vector<at::Tensor> results(4);
  std::vector<std::thread> threads;
  threads.reserve(results.size());
  for (at::Tensor& result : results) {
    threads.emplace_back([&] {
      for (int i = 0; i < 20; ++i) result = step.forward(experts);
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const at::Tensor& result : results) EXPECT_TRUE(same_bits(expected, result));
}

TEST_F(WeightCaching, InferenceWeightsAreNeverKept) {
  set_weight_cache(WeightCache::ON);
  const c10::InferenceMode inference;
  const at::Tensor W = torch::randn({3, 48, 64});
  const at::Tensor A = torch::randn({40, 64});
  const at::Tensor offs = testing::offs_of({13, 0, 27});
  const Counted counted =
      count([&] { to_fp8_rowwise_then_scaled_grouped_mm(A, W.transpose(1, 2), offs); });
  EXPECT_EQ(counted.hits + counted.misses, 0);
}

// ---- joined weights ---------------------------------------------------------
const FormKey& row_codes() {
  static const FormKey key{Float8Format{ElemDtype::E4M3, ScalingGranularity::AXISWISE, true}, 2,
                           Encoding::FLOAT32};
  return key;
}

// Two converted weights that an expert layer multiplies as one.
struct Pair {
  Experts gate = converted_experts();
  Experts up = converted_experts();
  std::vector<at::Tensor> parts() { return {gate->weight, up->weight}; }

  at::Tensor expected() {
    return operand_values(at::cat(parts(), 1), row_codes().format, 2, std::nullopt, at::kFloat);
  }
  static at::Tensor values(const Operand& operand) { return operand.form(row_codes(), {}).data; }
  // A forward, its backward, and an optimizer's visible change of both.
  void step() {
    weights_for_forward(parts(), true);
    note_weight_gradients(parts());
    update(gate), update(up);
  }
  static void update(Experts& experts) {
    const torch::NoGradGuard no_grad;
    experts->weight.mul_(1.5);
  }
};

TEST_F(WeightCaching, JoinedWeightsAreKeptWhileEveryPartIsUnchanged) {
  Pair pair;
  pair.step();
  const CachedOperand made = weights_for_forward(pair.parts(), true);
  EXPECT_TRUE(made.is_kept);
  EXPECT_EQ(made.operand.size(1), 96);
  EXPECT_TRUE(same_bits(Pair::values(made.operand), pair.expected()));
  EXPECT_EQ(count([&] { weights_for_forward(pair.parts(), true); }).hits, 1);
  EXPECT_TRUE(same_bits(Pair::values(weights_for_backward(pair.parts())), pair.expected()));

  Pair::update(pair.up);
  EXPECT_EQ(count([&] { weights_for_forward(pair.parts(), true); }).hits, 0) << "up has changed";
  EXPECT_TRUE(same_bits(Pair::values(weights_for_backward(pair.parts())), pair.expected()));
}

TEST_F(WeightCaching, JoinedWeightsAreNotThoseOfALaterPart) {
  Pair pair;
  pair.step();
  Pair::values(weights_for_forward(pair.parts(), true).operand);
  const uint32_t version = pair.up->weight._version();
  pair.up = converted_experts();  // perhaps at the address of the one before
  while (pair.up->weight._version() < version) Pair::update(pair.up);
  EXPECT_TRUE(
      same_bits(Pair::values(weights_for_forward(pair.parts(), true).operand), pair.expected()));
}

TEST_F(WeightCaching, JoinedWeightsTrustNoPartThatSomebodyElseMayWrite) {
  Pair pair;
  pair.step();
  const at::Tensor alias = pair.up->weight.data();
  weights_for_forward(pair.parts(), true);
  EXPECT_EQ(count([&] { weights_for_forward(pair.parts(), true); }).hits, 0);
}

}  // namespace
}  // namespace moe8
