// SPDX-License-Identifier: BSD-3-Clause
#include "numerics/sample.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>

#include <algorithm>
#include <cmath>
#include <utility>

namespace moe8 {
namespace {

constexpr int64_t kMinSlices = 4;       // rows or columns of a sample, however long they are
constexpr int64_t kResultColumns = 32;  // of OUT and GRAD_INPUT

std::vector<int64_t> sizes_of(const std::vector<int64_t>& ends) {
  std::vector<int64_t> sizes;
  for (size_t g = 0; g < ends.size(); ++g) sizes.push_back(ends[g] - (g ? ends[g - 1] : 0));
  return sizes;
}

// As many slices of `length` values as fit the wish.
Picks slices(int64_t size, int64_t length, int64_t values) {
  return spaced(size, std::max(kMinSlices, values / std::max<int64_t>(length, 1)));
}

int64_t side_of_blocks(int64_t results) {
  return std::max(kMinSlices, static_cast<int64_t>(std::sqrt(static_cast<double>(results))));
}

}  // namespace

// The high-precision side of a product, the groups of which its result is looked at, and the parts
// that are to be taken.
struct Sampler::Product {
  Gemm gemm;
  at::Tensor left;
  at::Tensor right;
  const std::vector<int64_t>& ends;
  Picks indices{};  // some of the groups that have rows, each a run of one
  Picks rows{};     // of these groups, each a run of all
  std::vector<TensorPart> parts{};

  int64_t count_rows() const { return ends.back(); }  // what lies in no group takes no part
  int64_t results_of_group(const Sampling& s) const {
    return s.results / static_cast<int64_t>(rows.size());
  }
  void choose_groups(const Sampling& s) {
    const std::vector<int64_t> sizes = sizes_of(ends);
    std::vector<size_t> filled;
    for (size_t g = 0; g < sizes.size(); ++g) {
      if (sizes[g] > 0) filled.push_back(g);
    }
    for (const int64_t i : indices_of(spaced(std::ssize(filled), s.experts), s.phase)) {
      const size_t g = filled[static_cast<size_t>(i)];
      indices.push_back({static_cast<int64_t>(g), 1, 1});
      rows.push_back({ends[g] - sizes[g], sizes[g], sizes[g]});
    }
  }
};

// ---- taking -----------------------------------------------------------------
at::Tensor Sampler::allot_part(Product& p, const at::Tensor& from, std::vector<Picks> axes) {
  std::vector<int64_t> sizes;
  sizes.reserve(axes.size());
  for (const Picks& picks : axes) sizes.push_back(count_of(picks));
  const at::Tensor to = memory_.allot(from.device(), sizes, from.scalar_type());
  p.parts.push_back({from, std::move(axes), to});
  return to;
}

// Products share operands: the three of a weight, and those of weights with one input.
at::Tensor Sampler::magnitudes_of(const at::Tensor& x) {
  if (x.is_cpu()) return largest_magnitudes(x, memory_);  // costs less than knowing
  const auto version = static_cast<uint32_t>(x.is_inference() ? 0 : x._version());
  const std::lock_guard lock(mutex_);
  const auto found = known_.find(x.const_data_ptr());
  if (found != known_.end()) {
    const Known& known = found->second;
    const bool is_same = !known.storage.expired() && known.version == version &&
                         known.sizes == x.sizes() && known.strides == x.strides() &&
                         known.dtype == x.scalar_type();
    if (is_same) return known.magnitudes;
  }
  const at::Tensor magnitudes = largest_magnitudes(x, memory_);
  known_.insert_or_assign(
      x.const_data_ptr(),
      Known{c10::weak_intrusive_ptr<c10::StorageImpl>(x.storage().getWeakStorageImpl()),
            x.sizes().vec(), x.strides().vec(), x.scalar_type(), version, magnitudes});
  return magnitudes;
}

void Sampler::release() {
  memory_.release();
  const std::lock_guard lock(mutex_);
  known_.clear();
}

// ---- operands ---------------------------------------------------------------
OperandSample Sampler::take_rows(Product& p, const at::Tensor& operand) {
  const int64_t rows = p.count_rows(), columns = operand.size(1);
  const bool contracts_rows = p.gemm == Gemm::GRAD_WEIGHT;
  OperandSample sample;
  sample.axis = contracts_rows ? 0 : 1;
  sample.magnitudes = magnitudes_of(rows == operand.size(0) ? operand : operand.narrow(0, 0, rows));
  sample.x = contracts_rows
                 ? allot_part(p, operand, {all(rows), slices(columns, rows, sampling_.values)})
                 : allot_part(p, operand, {slices(rows, columns, sampling_.values), all(columns)});
  return sample;
}

OperandSample Sampler::take_weight(Product& p) {
  const at::Tensor& weight = p.right;
  OperandSample sample;
  sample.axis = p.gemm == Gemm::OUT ? 2 : 1;
  sample.magnitudes = magnitudes_of(weight);
  const Picks experts = spaced(weight.size(0), sampling_.experts);
  const int64_t contracted = weight.size(sample.axis);
  const Picks others =
      slices(weight.size(3 - sample.axis), count_of(experts) * contracted, sampling_.values);
  sample.x = p.gemm == Gemm::OUT ? allot_part(p, weight, {experts, others, all(contracted)})
                                 : allot_part(p, weight, {experts, all(contracted), others});
  return sample;
}

// ---- results ----------------------------------------------------------------
// Some rows and columns of each group's rows of OUT or GRAD_INPUT.
ResultSample Sampler::take_rows_of_groups(Product& p, const at::Tensor& result) {
  ResultSample sample;
  const int64_t wanted = std::max<int64_t>(1, p.results_of_group(sampling_) / kResultColumns);
  Picks rows = p.rows;
  for (PickedRun& group : rows) {
    group.count = std::min(group.size, wanted);
    sample.rows.push_back(group.count);
  }
  const Picks columns = spaced(result.size(1), kResultColumns);
  const Picks contracted = all(p.left.size(1));
  sample.left = allot_part(p, p.left, {rows, contracted});
  sample.right = p.gemm == Gemm::OUT ? allot_part(p, p.right, {p.indices, columns, contracted})
                                     : allot_part(p, p.right, {p.indices, contracted, columns});
  sample.got = allot_part(p, result, {rows, columns});
  return sample;
}

// Some rows and columns of each group's GRAD_WEIGHT. They contract all rows of the group: so the sums
// are formed where the rows are.
ResultSample Sampler::take_blocks_of_groups(Product& p, const at::Tensor& result) {
  const int64_t side = side_of_blocks(p.results_of_group(sampling_));
  const Picks rows = spaced(result.size(1), side), columns = spaced(result.size(2), side);
  ResultSample sample{.got = allot_part(p, result, {p.indices, rows, columns})};
  const auto of_operand = [&](const at::Tensor& x, const Picks& picks) {
    const at::Tensor to = at::empty({count_of(p.rows), count_of(picks)}, x.options());
    p.parts.push_back({x, {p.rows, picks}, to});
    return to;
  };
  const at::Tensor left = of_operand(p.left, rows), right = of_operand(p.right, columns);
  take_parts(std::exchange(p.parts, {}), sampling_.phase);
  Picks groups = p.rows;  // where they lie now
  int64_t begin = 0;
  for (PickedRun& group : groups) {
    group.begin = begin;
    begin += group.size;
  }
  sample.expected = products_of_rows(left, right, groups, memory_);
  return sample;
}

ProductSample Sampler::take(const GemmProblem& problem, const at::Tensor& result) {
  ProductSample sample{.gemm = problem.gemm, .formats = problem.formats};
  const at::Tensor left = problem.left.source(), right = problem.right.source();
  Product p{problem.gemm, left, right, problem.groups.ends_on_host(left.size(0))};
  if (problem.groups.offs()) sample.tokens = sizes_of(p.ends);
  p.choose_groups(sampling_);
  sample.is_empty = p.rows.empty() || left.numel() == 0 || right.numel() == 0;
  if (sample.is_empty) return sample;
  const bool contracts_rows = p.gemm == Gemm::GRAD_WEIGHT;
  sample.left = take_rows(p, left);
  sample.right = contracts_rows ? take_rows(p, right) : take_weight(p);
  if (contracts_rows && problem.groups.offs()) {
    sample.left.offs = sample.right.offs =
        at::tensor(std::vector<int32_t>(p.ends.begin(), p.ends.end()), at::kInt);
  }
  sample.result =
      contracts_rows ? take_blocks_of_groups(p, result) : take_rows_of_groups(p, result);
  take_parts(p.parts, sampling_.phase);
  return sample;
}

std::vector<at::Tensor*> ProductSample::tensors() {
  std::vector<at::Tensor*> all;
  for (at::Tensor* x : {&left.x, &left.magnitudes, &right.x, &right.magnitudes, &result.got,
                        &result.left, &result.right, &result.expected}) {
    if (x->defined() && !x->is_cpu()) all.push_back(x);
  }
  return all;
}

}  // namespace moe8
