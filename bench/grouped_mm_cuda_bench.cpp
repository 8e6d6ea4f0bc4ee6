// SPDX-License-Identifier: BSD-3-Clause
// Expert layers on one GPU, forward and backward, against LibTorch's bf16 and FP8 grouped products
// of the same run: S1 to S4, with balanced, ragged and Zipf-skewed groups; and the FP8 GEMMs alone
// on ready codes. A step is timed from its first launch to the device being idle; ragged groups
// also several in a row, as layers of a model follow each other: the time of each is then the
// GPU's.
//
//   grouped_mm_cuda_bench [--rounds N] [--json FILE]      MOE8_BENCH_SHAPES=S1,S3 picks shapes
#include <c10/cuda/CUDACachingAllocator.h>
#include <c10/cuda/CUDAFunctions.h>
#include <torch/torch.h>

#include <cmath>
#include <cstdlib>
#include <iostream>
#include <memory>

#include "autograd/training_formats.h"
#include "device/cuda_backend.h"
#include "gemm/low_precision_gemm.h"
#include "harness.h"
#include "moe8/moe8.h"
#include "shapes.h"

namespace moe8::bench {
namespace {

enum class Routing { BALANCED, RAGGED, ZIPF };
constexpr Routing kRoutings[] = {Routing::BALANCED, Routing::RAGGED, Routing::ZIPF};

const char* to_string(Routing routing) {
  switch (routing) {
    case Routing::BALANCED:
      return "balanced";
    case Routing::RAGGED:
      return "ragged";
    case Routing::ZIPF:
      return "zipf";
  }
  return "invalid";
}

// End rows of E groups that share M rows, by rules that compare_torchao.py repeats. RAGGED: from
// half to one and a half of the mean, aligned to nothing. ZIPF: shares of 1 / rank, ranks spread
// out.
at::Tensor group_ends(Routing routing, int64_t M, int64_t E) {
  std::vector<double> weights(E, 1.0);
  for (int64_t e = 0; e < E; ++e) {
    if (routing == Routing::RAGGED)
      weights[e] = 0.5 + static_cast<double>((e * 619 + 7) % 1000) / 1000.0;
    if (routing == Routing::ZIPF) weights[(5 * e + 3) % E] = 1.0 / static_cast<double>(e + 1);
  }
  double total = 0;
  for (double w : weights) total += w;
  const at::Tensor ends = at::empty({E}, at::kInt);
  double sum = 0;
  for (int64_t e = 0; e < E; ++e) {
    sum += weights[e];
    const auto share = static_cast<int64_t>(static_cast<double>(M) * (sum / total));
    ends.mutable_data_ptr<int32_t>()[e] = static_cast<int32_t>(e + 1 == E ? M : share);
  }
  return ends.to(at::kCUDA);
}

// One expert layer: tensors, and a step in each of the ways that are compared.
struct Layer {
  GroupedShape shape;
  at::Tensor A, W, offs, grad_out;

  Layer(const GroupedShape& s, Routing routing) : shape(s) {
    const auto bf16 = at::TensorOptions().dtype(at::kBFloat16).device(at::kCUDA);
    A = at::randn({s.M, s.K}, bf16).requires_grad_();
    W = (at::randn({s.E, s.N, s.K}, bf16) / std::sqrt(static_cast<double>(s.K))).requires_grad_();
    grad_out = at::randn({s.M, s.N}, bf16);
    offs = group_ends(routing, s.M, s.E);
  }

  at::Tensor forward(const Config& config) const {
    return quantize_then_scaled_grouped_mm(A, W.transpose(1, 2), offs, config);
  }
  at::Tensor forward_bf16() const { return at::_grouped_mm(A, W.transpose(1, 2), offs); }
  void backward(const at::Tensor& out) const { torch::autograd::grad({out}, {A, W}, {grad_out}); }
  double flops() const { return 2.0 * multiplications(shape); }
};

void wait() {
  c10::cuda::device_synchronize();
}

// Bytes that a forward leaves allocated for its backward, the result not counted.
int64_t saved_bytes(const Layer& layer, const Config* config) {
  namespace allocator = c10::cuda::CUDACachingAllocator;
  const auto allocated = [] {
    wait();
    return allocator::getDeviceStats(0).allocated_bytes[0].current;
  };
  const int64_t before = allocated();
  const at::Tensor out = config ? layer.forward(*config) : layer.forward_bf16();
  return allocated() - before - static_cast<int64_t>(out.nbytes());
}

void add_layer_rows(std::vector<Row>& rows, const std::shared_ptr<Layer>& layer,
                    const std::string& shape) {
  const double flops = 3 * layer->flops();
  const int baseline = static_cast<int>(rows.size());
  rows.push_back({.op = "at::_grouped_mm, forward + backward",
                  .shape = shape,
                  .recipe = "bf16",
                  .flops = flops,
                  .run = [layer] {
                    layer->backward(layer->forward_bf16());
                    wait();
                  }});
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil", "mxfp8_rceil_wgrad_with_hp"}) {
    const auto step = [layer, config = recipe(name)] {
      layer->backward(layer->forward(config));
      wait();
    };
    const auto add = [&](const char* op, const std::function<void()>& prepare) {
      rows.push_back({.op = op,
                      .shape = shape,
                      .recipe = name,
                      .flops = flops,
                      .run = step,
                      .baseline = baseline,
                      .prepare = prepare});
    };
    // A step after an optimizer's: the weights are quantized once, for forward and backward.
    add("forward + backward", [] {
      set_weight_cache(WeightCache::ON);
      clear_weight_cache();
    });
    // A further microbatch: the weights are as the step before left them.
    add("forward + backward, cached weights", [step] {
      set_weight_cache(WeightCache::ON);
      step();
    });
    add("forward + backward, weight cache off", [] { set_weight_cache(WeightCache::OFF); });
  }
}

// Some steps in a row before the host waits.
void add_rows_in_a_row(std::vector<Row>& rows, const std::shared_ptr<Layer>& layer,
                       const std::string& shape) {
  constexpr int kSteps = 5;
  const int baseline = static_cast<int>(rows.size());
  const auto add = [&](const char* op, const char* name, const std::function<void()>& step) {
    Row row{.op = op,
            .shape = shape,
            .recipe = name,
            .flops = 3 * layer->flops(),
            .run =
                [step] {
                  for (int i = 0; i < kSteps; ++i) step();
                  wait();
                },
            .calls = kSteps};
    if (static_cast<int>(rows.size()) > baseline) row.baseline = baseline;
    row.prepare = [] { set_weight_cache(WeightCache::ON); };
    rows.push_back(std::move(row));
  };
  add("in a row: at::_grouped_mm, forward + backward", "bf16",
      [layer] { layer->backward(layer->forward_bf16()); });
  for (const char* name : {"fp8_rowwise", "mxfp8_rceil"}) {
    const auto step = [layer, config = recipe(name)] { layer->backward(layer->forward(config)); };
    add("in a row: forward + backward", name, [step] {
      clear_weight_cache();
      step();
    });
    add("in a row: forward + backward, cached weights", name, step);
  }
}

// The three FP8 GEMMs on codes that are ready, and LibTorch's forward on the same codes.
void add_gemm_rows(std::vector<Row>& rows, const std::shared_ptr<Layer>& layer,
                   const std::string& shape) {
  const TrainingFormats formats = training_formats(recipe("fp8_rowwise"));
  const auto a = std::make_shared<Operand>(layer->A.detach());
  const auto w = std::make_shared<Operand>(layer->W.detach());
  const auto dO = std::make_shared<Operand>(layer->grad_out);
  const TokenGroups groups(layer->offs);
  const int baseline = static_cast<int>(rows.size());
  const FormKey rows_key{formats.out.left, 1, Encoding::FLOAT8};
  const FormKey weight_key{formats.out.right, 2, Encoding::FLOAT8};
  rows.push_back({.op = "at::_scaled_grouped_mm, out, fast accumulation",
                  .shape = shape,
                  .recipe = "FP8 codes",
                  .flops = layer->flops(),
                  .run = [=] {
                    const Form left = a->form(rows_key, groups);
                    const Form right = w->form(weight_key, groups);
                    at::_scaled_grouped_mm(left.data.view(at::kFloat8_e4m3fn),
                                           right.data.view(at::kFloat8_e4m3fn).transpose(1, 2),
                                           left.decode_scale, right.decode_scale, layer->offs,
                                           std::nullopt, std::nullopt, at::kBFloat16,
                                           /*use_fast_accum=*/true);
                    wait();
                  }});
  const auto add = [&](Gemm gemm, const GemmFormats& f, const std::shared_ptr<Operand>& left,
                       const std::shared_ptr<Operand>& right) {
    rows.push_back({.op = to_string(gemm),
                    .shape = shape,
                    .recipe = "FP8 codes",
                    .flops = layer->flops(),
                    .run =
                        [=] {
                          low_precision_gemm({.gemm = gemm,
                                              .left = *left,
                                              .right = *right,
                                              .groups = groups,
                                              .formats = f,
                                              .out_dtype = at::kBFloat16});
                          wait();
                        },
                    .baseline = baseline});
  };
  add(Gemm::OUT, formats.out, a, w);
  add(Gemm::GRAD_INPUT, formats.grad_input, dO, w);
  add(Gemm::GRAD_WEIGHT, formats.grad_weight, dO, a);
}

bool is_wanted(const GroupedShape& shape) {
  const char* names = std::getenv("MOE8_BENCH_SHAPES");
  return !names || std::string(names).find(shape.name) != std::string::npos;
}

void print_saved(const Layer& layer, const std::string& shape) {
  const Config fp8 = recipe("fp8_rowwise");
  set_weight_cache(WeightCache::OFF);
  std::cout << "saved for backward, " << shape << ": bf16 " << saved_bytes(layer, nullptr) / 1000000
            << " MB; fp8_rowwise " << saved_bytes(layer, &fp8) / 1000000
            << " MB (the bf16 input of " << layer.A.nbytes() / 1000000 << " MB is the caller's)\n";
}

int run(int argc, char** argv) {
  if (const auto failure = load_cuda_backend()) {
    std::cerr << "grouped_mm_cuda_bench: " << *failure << "\n";
    return 77;
  }
  int status = 0;
  for (const GroupedShape& shape : kGpuGroupedShapes) {
    if (!is_wanted(shape)) continue;
    std::vector<Row> rows;  // one shape at a time: the tensors of all would not fit
    for (Routing routing : kRoutings) {
      const auto layer = std::make_shared<Layer>(shape, routing);
      const std::string name = std::string(shape.name) + " " + to_string(routing);
      if (routing == Routing::RAGGED) {
        print_saved(*layer, name);
        add_gemm_rows(rows, layer, name);
      }
      add_layer_rows(rows, layer, name);
      if (routing == Routing::RAGGED) add_rows_in_a_row(rows, layer, name);
    }
    status |= run_table(std::string("grouped products on a GPU, ") + shape.name, rows, argc, argv);
  }
  return status;
}

}  // namespace
}  // namespace moe8::bench

int main(int argc, char** argv) {
  return moe8::bench::run(argc, argv);
}
