// SPDX-License-Identifier: BSD-3-Clause
#include "numerics/sample.h"

#include <ATen/ops/aminmax.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/index_select.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/tensor.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cmath>
#include <numeric>
#include <utility>

namespace moe8 {
namespace {

constexpr int64_t kMinSlices = 4;       // rows or columns of a sample, however long they are
constexpr int64_t kResultColumns = 32;  // of OUT and GRAD_INPUT
constexpr size_t kKnown = 4;            // operands whose range is kept
constexpr int64_t kBlockGroups = 2;     // of GRAD_WEIGHT on a GPU, where each is several launches
constexpr int64_t kChunk = 256;         // rows that a GPU contracts at a time
constexpr int64_t kMinChunks = 16;      // fewer rows are one product

std::vector<int64_t> sizes_of(const std::vector<int64_t>& ends) {
  std::vector<int64_t> sizes;
  for (size_t g = 0; g < ends.size(); ++g) sizes.push_back(ends[g] - (g ? ends[g - 1] : 0));
  return sizes;
}

// Some of the groups that have rows.
std::vector<SampledGroup> sampled_groups(const std::vector<int64_t>& ends, const Sampling& s) {
  std::vector<SampledGroup> filled;
  const std::vector<int64_t> sizes = sizes_of(ends);
  for (size_t g = 0; g < sizes.size(); ++g) {
    if (sizes[g] > 0) filled.push_back({static_cast<int64_t>(g), ends[g] - sizes[g], sizes[g]});
  }
  std::vector<SampledGroup> chosen;
  for (const int64_t i : spaced(static_cast<int64_t>(filled.size()), s.experts, s.phase)) {
    chosen.push_back(filled[static_cast<size_t>(i)]);
  }
  return chosen;
}

// As many slices of `length` values as fit the wish.
std::vector<int64_t> slices(int64_t size, int64_t length, int64_t values, double phase) {
  return spaced(size, std::max(kMinSlices, values / std::max<int64_t>(length, 1)), phase);
}

std::vector<int64_t> indices_of(const std::vector<SampledGroup>& groups) {
  std::vector<int64_t> indices;
  for (const SampledGroup& group : groups) indices.push_back(group.index);
  return indices;
}

// left^T right, in float64. A GPU's library gives so small a result to one multiprocessor, however long
// the contraction: so chunks of a long one are products of their own.
at::Tensor product_of_rows(const at::Tensor& left, const at::Tensor& right) {
  const int64_t rows = left.size(0), chunks = rows / kChunk;
  if (left.is_cpu() || chunks < kMinChunks) return at::matmul(left.t(), right);
  const int64_t in_chunks = chunks * kChunk;
  const auto chunked = [&](const at::Tensor& x) {
    return x.narrow(0, 0, in_chunks).view({chunks, kChunk, x.size(1)});
  };
  const at::Tensor sum = at::bmm(chunked(left).transpose(1, 2), chunked(right)).sum(0);
  if (in_chunks == rows) return sum;
  const auto others = [&](const at::Tensor& x) { return x.narrow(0, in_chunks, rows - in_chunks); };
  return sum.add(at::matmul(others(left).t(), others(right)));
}

}  // namespace

// The high-precision side of a product, and the groups of which its result is looked at.
struct Sampler::Product {
  Gemm gemm;
  at::Tensor left;
  at::Tensor right;
  std::vector<SampledGroup> groups;

  int64_t share(const Sampling& s) const { return s.results / static_cast<int64_t>(groups.size()); }
};

// ---- taking -----------------------------------------------------------------
at::Tensor Sampler::index(const std::vector<int64_t>& indices, const at::Device& device) {
  const std::lock_guard lock(mutex_);
  at::Tensor& known = indices_[{device.str(), indices}];
  if (known.defined()) return known;
  known = at::tensor(indices, at::kLong);
  if (!device.is_cpu()) known = known.pin_memory().to(device, /*non_blocking=*/true);
  return known;
}

at::Tensor Sampler::take_along(const at::Tensor& x, int64_t axis,
                               const std::vector<int64_t>& indices) {
  if (static_cast<int64_t>(indices.size()) == x.size(axis)) return x;
  return at::index_select(x, axis, index(indices, x.device()));
}

// Products share operands: the three of a weight, and those of weights with one input.
void Sampler::measure_range(const at::Tensor& x, OperandSample& sample) {
  const auto version = static_cast<uint32_t>(x.is_inference() ? 0 : x._version());
  const std::lock_guard lock(mutex_);
  for (const Known& known : known_) {
    const at::Tensor& y = known.operand;
    if (y.is_alias_of(x) && y.const_data_ptr() == x.const_data_ptr() && y.sizes() == x.sizes() &&
        y.strides() == x.strides() && y.scalar_type() == x.scalar_type() &&
        known.version == version) {
      sample.range[0] = known.least, sample.range[1] = known.most;
      return;
    }
  }
  std::tie(sample.range[0], sample.range[1]) = at::aminmax(x);
  if (x.is_cpu()) return;  // there a look at it costs less than its memory
  if (known_.size() == kKnown) known_.erase(known_.begin());
  known_.push_back({x, version, sample.range[0], sample.range[1]});
}

void Sampler::release() {
  const std::lock_guard lock(mutex_);
  known_.clear();
}

// ---- operands ---------------------------------------------------------------
OperandSample Sampler::take_rows(Gemm gemm, const at::Tensor& operand, int64_t rows,
                                 const std::optional<at::Tensor>& offs) {
  const at::Tensor x = operand.narrow(0, 0, rows);  // what lies in no group takes no part
  OperandSample sample;
  measure_range(x, sample);
  if (gemm == Gemm::GRAD_WEIGHT) {
    const auto columns = slices(x.size(1), rows, sampling_.values, sampling_.phase);
    sample.x = take_along(x, 1, columns);
    sample.offs = offs;
  } else {
    sample.x = take_along(x, 0, slices(rows, x.size(1), sampling_.values, sampling_.phase));
    sample.axis = 1;
  }
  return sample;
}

OperandSample Sampler::take_weight(Gemm gemm, const at::Tensor& weight) {
  OperandSample sample;
  measure_range(weight, sample);
  const at::Tensor x =
      take_along(weight, 0, spaced(weight.size(0), sampling_.experts, sampling_.phase));
  sample.axis = gemm == Gemm::OUT ? 2 : 1;
  const int64_t other = 3 - sample.axis;
  sample.x = take_along(
      x, other,
      slices(x.size(other), x.size(0) * x.size(sample.axis), sampling_.values, sampling_.phase));
  return sample;
}

// ---- results ----------------------------------------------------------------
// Some rows and columns of each group's rows of OUT or GRAD_INPUT.
ResultSample Sampler::take_rows_of_groups(const Product& p, const at::Tensor& result) {
  ResultSample sample;
  const int64_t wanted = std::max<int64_t>(1, p.share(sampling_) / kResultColumns);
  std::vector<int64_t> rows;
  for (const SampledGroup& group : p.groups) {
    const std::vector<int64_t> of_group = spaced(group.size, wanted, sampling_.phase);
    for (const int64_t row : of_group) rows.push_back(group.begin + row);
    sample.rows.push_back(static_cast<int64_t>(of_group.size()));
  }
  const auto columns = spaced(result.size(1), kResultColumns, sampling_.phase);
  sample.left = take_along(p.left, 0, rows);
  sample.right = take_along(take_along(p.right, 0, indices_of(p.groups)),
                            p.gemm == Gemm::OUT ? 1 : 2, columns);
  sample.got = take_along(take_along(result, 0, rows), 1, columns);
  return sample;
}

// Some rows and columns of each group's GRAD_WEIGHT. They contract all rows of the group: so the sums
// are formed where the rows are.
ResultSample Sampler::take_blocks_of_groups(Product p, const at::Tensor& result) {
  if (!result.is_cpu()) {
    std::vector<SampledGroup> some;
    const auto all = static_cast<int64_t>(p.groups.size());
    for (const int64_t g : spaced(all, kBlockGroups, sampling_.phase)) some.push_back(p.groups[g]);
    p.groups = std::move(some);
  }
  const auto side = std::max(
      kMinSlices, static_cast<int64_t>(std::sqrt(static_cast<double>(p.share(sampling_)))));
  const auto rows = spaced(result.size(1), side, sampling_.phase);
  const auto columns = spaced(result.size(2), side, sampling_.phase);
  const at::Tensor left = take_along(p.left, 1, rows).to(at::kDouble),
                   right = take_along(p.right, 1, columns).to(at::kDouble);
  std::vector<at::Tensor> expected;
  for (const SampledGroup& group : p.groups) {
    expected.push_back(product_of_rows(left.narrow(0, group.begin, group.size),
                                       right.narrow(0, group.begin, group.size)));
  }
  const at::Tensor got = take_along(result, 0, indices_of(p.groups));
  return {.got = take_along(take_along(got, 1, rows), 2, columns), .expected = at::stack(expected)};
}

ProductSample Sampler::take(const GemmProblem& problem, const at::Tensor& result) {
  ProductSample sample{.gemm = problem.gemm, .formats = problem.formats};
  Product p{problem.gemm, problem.left.source(), problem.right.source(), {}};
  const std::vector<int64_t>& ends = problem.groups.ends_on_host(p.left.size(0));
  if (problem.groups.offs()) sample.tokens = sizes_of(ends);
  p.groups = sampled_groups(ends, sampling_);
  sample.is_empty = p.groups.empty() || p.left.numel() == 0 || p.right.numel() == 0;
  if (sample.is_empty) return sample;
  std::optional<at::Tensor> offs;
  if (problem.groups.offs()) {
    offs = at::tensor(std::vector<int32_t>(ends.begin(), ends.end()), at::kInt);
  }
  const bool contracts_rows = p.gemm == Gemm::GRAD_WEIGHT;
  sample.left = take_rows(p.gemm, p.left, ends.back(), offs);
  sample.right =
      contracts_rows ? take_rows(p.gemm, p.right, ends.back(), offs) : take_weight(p.gemm, p.right);
  sample.result =
      contracts_rows ? take_blocks_of_groups(p, result) : take_rows_of_groups(p, result);
  return sample;
}

// ---- to the host ------------------------------------------------------------
std::vector<at::Tensor*> ProductSample::tensors() {
  std::vector<at::Tensor*> all;
  for (at::Tensor* x :
       {&left.x, &left.range[0], &left.range[1], &right.x, &right.range[0], &right.range[1],
        &result.got, &result.left, &result.right, &result.expected}) {
    if (x->defined() && !x->is_cpu()) all.push_back(x);
  }
  return all;
}

HostCopy::HostCopy(const std::vector<at::Tensor*>& tensors) {
  std::map<std::pair<std::string, at::ScalarType>, std::vector<at::Tensor*>> alike;
  for (at::Tensor* x : tensors) alike[{x->device().str(), x->scalar_type()}].push_back(x);
  for (const auto& [kind, of_kind] : alike) {
    const at::Device device = of_kind.front()->device();
    const at::ScalarType dtype = kind.second;
    std::vector<at::Tensor> flat;
    for (const at::Tensor* x : of_kind) flat.push_back(x->flatten());
    const at::Tensor packed = at::cat(flat);
    const at::Tensor host = at::empty(packed.sizes(), at::dtype(dtype).pinned_memory(true));
    host.copy_(packed, /*non_blocking=*/true);
    ready_.emplace_back(device.type());
    ready_.back().record(c10::impl::VirtualGuardImpl(device.type()).getStream(device));
    int64_t begin = 0;
    for (at::Tensor* x : of_kind) {
      const int64_t size = x->numel();
      *x = host.narrow(0, begin, size).view(x->sizes());
      begin += size;
    }
    pinned_.push_back(host);
  }
}

void HostCopy::wait() const {
  for (const c10::Event& event : ready_) event.synchronize();
}

std::vector<int64_t> spaced(int64_t size, int64_t count, double phase) {
  std::vector<int64_t> indices;
  const int64_t wanted = std::min(size, count);
  for (int64_t i = 0; i < wanted; ++i) {
    const double at = (static_cast<double>(i) + (wanted < size ? phase : 0)) /
                      static_cast<double>(wanted) * static_cast<double>(size);
    indices.push_back(wanted < size ? std::min(size - 1, static_cast<int64_t>(at)) : i);
  }
  return indices;
}

}  // namespace moe8
