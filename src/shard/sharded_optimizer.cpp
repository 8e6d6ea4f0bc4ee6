// SPDX-License-Identifier: BSD-3-Clause
// Buckets of gradients to the ranks that step them, buckets of parameters back. Which rows are whose:
// shard/partition.h.
#include "moe8/sharded_optimizer.h"

#include <ATen/core/grad_mode.h>
#include <ATen/ops/_foreach_copy.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/tensor.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>
#include <torch/csrc/autograd/function_hook.h>
#include <torch/csrc/autograd/variable.h>

#include <algorithm>
#include <chrono>
#include <deque>
#include <map>
#include <numeric>
#include <optional>
#include <tuple>
#include <utility>

#include "base/check.h"
#include "dist/exchanges.h"
#include "dist/group.h"
#include "formats/integers.h"
#include "kernels/adamw.h"
#include "optim/engine.h"
#include "shard/partition.h"

namespace moe8 {
namespace {

constexpr const char* kOptimizer = "sharded_optimizer";
// Buckets of weights that travel through memory of their own, at once. Whoever waits for one of them
// keeps the GPU idle; eight of the default size are half a gigabyte, where a step needs the least.
constexpr size_t kInMemory = 8;

SharedTensor shared(const OptimizedParameter& parameter) {
  const at::Tensor& x = parameter.tensor;
  SharedTensor s;
  if (x.dim() > 0) {
    s.rows = x.size(0);
    s.row_elements = s.rows > 0 ? x.numel() / s.rows : 0;
  }
  s.whole = parameter.rule == UpdateRule::MUON && x.dim() == 2;  // of a stack, matrices
  return s;
}

// In how many parts ranks hold it, and which this one is.
std::pair<int64_t, int64_t> parts_of(const ShardedParameter& p) {
  const at::Tensor& x = p.parameter.tensor;
  if (p.experts > 0) return {p.experts / x.size(0), p.first_expert / x.size(0)};
  if (p.part.size > 0) {
    const int64_t held = x.size(p.part.axis);
    return {p.part.size / held, p.part.first / held};
  }
  return {1, 0};
}

// Rows of a contiguous tensor, apart from autograd.
at::Tensor rows_of(const at::Tensor& x, const RowRange& range) {
  const at::Tensor plain = x.detach();
  return x.dim() == 0 || range.count == x.size(0) ? plain
                                                  : plain.narrow(0, range.first, range.count);
}

// Parameters of one dtype, one group and one factor on the learning rate.
struct Bucket {
  const Group* group = nullptr;
  Group of_gradients;  // the same ranks
  size_t rank = 0;
  at::ScalarType dtype = at::kFloat;
  double rate = 1;
  std::vector<size_t> parameters;
  std::vector<std::vector<RowRange>> shares;  // [rank][parameter]
  std::vector<int64_t> elements;              // of each rank
  std::optional<Optimizer> optimizer;         // of what this rank steps of it; none: of nothing

  size_t missing = 0;    // gradients of this backward that are still to come
  size_t hooked = 0;     // that tell when they are there
  at::Tensor own;        // gradients of this rank's part that it has computed itself
  Pending coming;        // what the others send
  at::Tensor sum;        // of this rank's part; undefined: no gradient yet
  bool sums_up = false;  // it is memory for sums, no longer a gradient that somebody else may hold

  size_t ranks() const { return shares.size(); }
  int64_t mine() const { return elements[rank]; }
  /// The parts of the ranks follow each other in one tensor: it travels from where it lies.
  bool is_one() const { return parameters.size() == 1; }
  /// And are of equal size: it comes to where it shall lie.
  bool is_one_in_equal_parts() const {
    return is_one() && std::ranges::all_of(elements, [&](int64_t n) { return n == mine(); });
  }
};

// What this rank steps of one parameter.
struct Piece {
  size_t bucket;
  size_t parameter;
  RowRange rows;
  int64_t begin;  // in the bucket's sum
  int64_t elements;
  size_t place;        // among those of the bucket's optimizer
  int64_t first_slot;  // of its sums of squares among those of the model
};

class TellsWhenReady : public torch::autograd::PostAccumulateGradHook {
 public:
  explicit TellsWhenReady(std::function<void()> tell) : tell_(std::move(tell)) {}
  void operator()(const at::Tensor&) override { tell_(); }

 private:
  std::function<void()> tell_;
};

}  // namespace

struct ShardedOptimizer::State {
  std::vector<ShardedParameter> parameters;
  ShardingGroups groups;
  std::vector<Bucket> buckets;  // in the order in which backward comes to them
  std::vector<Piece> pieces;
  std::map<std::string, size_t> piece_of;  // by the parameter's name
  std::unique_ptr<OptimEngine> engine;     // adds up
  at::TensorOptions on_device;
  int64_t slots = 0;
  at::Tensor slot_of;  // of each of this rank's sums of squares
  size_t in_flight = 1;
  size_t launched = 0;  // buckets of this backward
  size_t finished = 0;
  std::vector<size_t> hooked;
  int64_t bytes_sent = 0;
  double seconds_waited = 0;

  ~State();
  const at::Tensor& tensor(size_t i) const { return parameters[i].parameter.tensor; }
  const Group& group_of(size_t i) const {
    if (parameters[i].experts > 0) return groups.expert_data;
    return parameters[i].part.size > 0 ? groups.part_data : groups.all;
  }
  void check() const;
  void check_parts(const ShardedParameter& p, const char* of, int64_t held, int64_t first,
                   int64_t all, const Group& same) const;
  void make_buckets(int64_t elements);
  void make_pieces();
  void make_slots();
  void make_optimizers(const OptimizerOptions& options);
  const at::Tensor& stepped(const Piece& piece) const {
    return buckets[piece.bucket].optimizer->stepped()[piece.place];
  }
  void hook();
  void ready(size_t bucket);
  at::Tensor packed_gradients(const Bucket& bucket);
  void launch();
  void finish();
  at::Tensor wait(Pending& pending);
  void add_up(Bucket& bucket, const std::vector<at::Tensor>& grads);
  void give_gradients();
  void start_gather(Bucket& bucket);
  void end_gather(Bucket& bucket);
  int64_t first_row(const Piece& piece) const {
    const ShardedParameter& p = parameters[piece.parameter];
    return p.first_expert + (p.part.axis == 0 ? p.part.first : 0) + piece.rows.first;
  }
  int64_t first_column(const Piece& piece) const {
    const MatrixPart& part = parameters[piece.parameter].part;
    return part.axis == 1 ? part.first : 0;
  }
  // Where a tensor of the optimizer's state lies in the whole one; "steps.NAME" is one number.
  OwnedRows place(const std::string& name, const at::Tensor& tensor) const {
    if (is_count(name)) return {name, 0, tensor, 0};
    const Piece& piece = piece_with(name);
    return {name, first_row(piece), tensor, first_column(piece)};
  }
  const Piece& piece_with(const std::string& state) const {
    return pieces[piece_of.at(state.substr(state.find('.') + 1))];
  }
  static bool is_count(const std::string& state) { return state.starts_with("steps."); }
};

// ---- who steps what -------------------------------------------------------------
void ShardedOptimizer::State::check() const {
  MOE8_CHECK(!parameters.empty(), kOptimizer, "parameters", "expected at least one, got none");
  for (const ShardedParameter& p : parameters) {
    const at::Tensor& x = p.parameter.tensor;
    MOE8_CHECK(x.defined() && x.is_contiguous(), kOptimizer, p.parameter.name,
               "expected a contiguous tensor");
    if (p.experts > 0) {
      MOE8_CHECK(x.dim() >= 2, kOptimizer, p.parameter.name, "expected a stack of experts, got ",
                 x.sizes());
      check_parts(p, "experts", x.size(0), p.first_expert, p.experts, groups.expert_data);
    }
    if (p.part.size > 0) {
      MOE8_CHECK(x.dim() == 2 && (p.part.axis == 0 || p.part.axis == 1) && p.experts == 0,
                 kOptimizer, p.parameter.name,
                 "expected a part of a matrix along axis 0 or 1, got ", x.sizes(), " along axis ",
                 p.part.axis);
      MOE8_CHECK(p.parameter.rule == UpdateRule::ADAMW, kOptimizer, p.parameter.name,
                 "expected AdamW for a part of a matrix, got Muon, which steps whole ones");
      check_parts(p, "a matrix", x.size(p.part.axis), p.part.first, p.part.size, groups.part_data);
    }
  }
}

// The ranks that hold the parts are all ranks.
void ShardedOptimizer::State::check_parts(const ShardedParameter& p, const char* of, int64_t held,
                                          int64_t first, int64_t all, const Group& same) const {
  MOE8_CHECK(held > 0 && all % held == 0 && first % held == 0 && first < all, kOptimizer,
             p.parameter.name, "expected an equal part of ", all, ", got ", held, " from ", first,
             " on in ", p.parameter.tensor.sizes());
  const int64_t parts = all / held;
  MOE8_CHECK(parts * same.size() == groups.all.size(), kOptimizer, p.parameter.name, "expected ",
             parts, " parts of ", of, " on ", same.size(), " ranks each to be all ",
             groups.all.size(), " ranks");
}

// The last parameters first: their gradients are there first. A bucket takes parameters until it is
// full, whatever lies between them, and buckets leave in the order in which they are complete.
void ShardedOptimizer::State::make_buckets(int64_t elements) {
  struct Open {
    size_t bucket;
    int64_t room;
  };
  std::map<std::tuple<const Group*, at::ScalarType, double>, Open> open;
  for (size_t i = parameters.size(); i-- > 0;) {
    const at::Tensor& x = tensor(i);
    const Group* const group = &group_of(i);
    const double rate = parameters[i].rate;
    const auto found = open.try_emplace({group, x.scalar_type(), rate}, Open{0, -1}).first;
    if (x.numel() > found->second.room) {
      found->second = {buckets.size(), elements};
      Bucket& bucket = buckets.emplace_back();
      bucket.group = group;
      bucket.rank = static_cast<size_t>(group->rank());
      bucket.dtype = x.scalar_type();
      bucket.rate = rate;
    }
    buckets[found->second.bucket].parameters.push_back(i);
    found->second.room -= x.numel();
  }
  std::ranges::stable_sort(buckets, std::greater(),
                           [](const Bucket& bucket) { return bucket.parameters.back(); });
}

void ShardedOptimizer::State::make_pieces() {
  for (size_t b = 0; b < buckets.size(); ++b) {
    Bucket& bucket = buckets[b];
    std::vector<SharedTensor> tensors;
    for (const size_t i : bucket.parameters) tensors.push_back(shared(parameters[i].parameter));
    bucket.shares = partition(tensors, bucket.group->size());
    for (const std::vector<RowRange>& share : bucket.shares) {
      int64_t sum = 0;
      for (size_t j = 0; j < tensors.size(); ++j) sum += share[j].count * tensors[j].row_elements;
      bucket.elements.push_back(sum);
    }
    int64_t begin = 0;
    for (size_t j = 0; j < tensors.size(); ++j) {
      const RowRange& rows = bucket.shares[bucket.rank][j];
      const int64_t count = rows.count * tensors[j].row_elements;
      if (count > 0) pieces.push_back({b, bucket.parameters[j], rows, begin, count, 0, 0});
      begin += count;
    }
  }
  // As the parameters are listed, whatever the buckets.
  std::ranges::sort(pieces, {}, &Piece::parameter);
  for (size_t k = 0; k < pieces.size(); ++k) {
    piece_of[parameters[pieces[k].parameter].parameter.name] = k;
  }
}

// Sums of squares lie in the order of the parameters and of their rows: as of one process, where
// parts are cut between runs.
void ShardedOptimizer::State::make_slots() {
  std::vector<std::pair<const Bucket*, size_t>> place(parameters.size());
  for (const Bucket& bucket : buckets) {
    for (size_t j = 0; j < bucket.parameters.size(); ++j) {
      place[bucket.parameters[j]] = {&bucket, j};
    }
  }
  std::vector<int64_t> own;
  size_t next = 0;  // piece
  for (size_t i = 0; i < parameters.size(); ++i) {
    const auto [bucket, j] = place[i];
    const SharedTensor x = shared(parameters[i].parameter);
    const auto [parts, part] = parts_of(parameters[i]);
    for (int64_t p = 0; p < parts; ++p) {
      for (size_t rank = 0; rank < bucket->ranks(); ++rank) {
        const int64_t runs = ceil_div(bucket->shares[rank][j].count * x.row_elements, kNormChunk);
        if (p == part && rank == bucket->rank && runs > 0) {
          pieces[next++].first_slot = slots;
          for (int64_t run = 0; run < runs; ++run) own.push_back(slots + run);
        }
        slots += runs;
      }
    }
  }
  slot_of = at::tensor(own, at::kLong).to(on_device.device());
}

// One per bucket: what a bucket's has stepped travels while the next one steps.
void ShardedOptimizer::State::make_optimizers(const OptimizerOptions& options) {
  std::vector<std::vector<OptimizedParameter>> own(buckets.size());
  for (Piece& piece : pieces) {
    std::vector<OptimizedParameter>& of_bucket = own[piece.bucket];
    piece.place = of_bucket.size();
    OptimizedParameter& part = of_bucket.emplace_back(parameters[piece.parameter].parameter);
    const int64_t row_elements = piece.elements / piece.rows.count;
    part.tensor = rows_of(part.tensor, piece.rows);
    // Which random number rounds an element: no two elements of the whole share one. Of parts along
    // columns as if they lay one below the other.
    const ShardedParameter& p = parameters[piece.parameter];
    part.first_element = first_row(piece) * row_elements;
    if (p.part.axis == 1)
      part.first_element += parts_of(p).second * tensor(piece.parameter).numel();
  }
  for (size_t b = 0; b < buckets.size(); ++b) {
    if (!own[b].empty()) buckets[b].optimizer.emplace(std::move(own[b]), options);
  }
  engine = make_optim_engine(on_device.device(), 1);
}

// ---- gradients ------------------------------------------------------------------
void ShardedOptimizer::State::hook() {
  for (size_t b = 0; b < buckets.size(); ++b) {
    for (const size_t i : buckets[b].parameters) {
      torch::autograd::impl::set_post_acc_grad_hooks(
          tensor(i), std::make_unique<TellsWhenReady>([this, b] { ready(b); }));
      hooked.push_back(i);
      ++buckets[b].hooked;
    }
    buckets[b].missing = buckets[b].hooked;
  }
}

ShardedOptimizer::State::~State() {
  for (const size_t i : hooked) torch::autograd::impl::post_acc_grad_hooks(tensor(i)).reset();
}

// Buckets leave in one order, the same on all ranks, whichever is ready first.
void ShardedOptimizer::State::ready(size_t bucket) {
  const at::NoGradGuard no_grad;
  MOE8_CHECK(bucket >= launched && buckets[bucket].missing > 0, kOptimizer, "accumulate",
             "expected a call after every backward, got a second backward before it");
  --buckets[bucket].missing;
  while (launched < buckets.size() && buckets[launched].missing == 0) launch();
}

// What goes to rank 0, then what goes to rank 1, ...
at::Tensor ShardedOptimizer::State::packed_gradients(const Bucket& bucket) {
  std::vector<at::Tensor> grads, parts;
  for (const size_t i : bucket.parameters) {
    at::Tensor grad = std::move(tensor(i).mutable_grad());
    tensor(i).mutable_grad().reset();
    MOE8_CHECK(!grad.defined() || grad.layout() == at::kStrided, kOptimizer,
               parameters[i].parameter.name, "expected a dense gradient, got ", grad.layout());
    grads.push_back(grad.defined() ? grad.to(bucket.dtype).contiguous()
                                   : at::zeros_like(tensor(i), tensor(i).options(),
                                                    at::MemoryFormat::Contiguous));
  }
  if (bucket.is_one()) return grads.front().flatten();
  for (const std::vector<RowRange>& share : bucket.shares) {
    for (size_t j = 0; j < grads.size(); ++j) {
      if (share[j].count > 0) parts.push_back(rows_of(grads[j], share[j]).flatten());
    }
  }
  return parts.empty() ? at::empty({0}, on_device.dtype(bucket.dtype)) : at::cat(parts);
}

void ShardedOptimizer::State::launch() {
  Bucket& bucket = buckets[launched++];
  const std::vector<at::Tensor> parts = packed_gradients(bucket).split_with_sizes(bucket.elements);
  bucket.own = parts[bucket.rank];
  if (bucket.ranks() > 1) {
    bucket.coming = begin_exchange(bucket.of_gradients, parts, bucket.mine());
    const int64_t all = std::accumulate(bucket.elements.begin(), bucket.elements.end(), int64_t{0});
    bytes_sent += (all - bucket.mine()) * static_cast<int64_t>(bucket.own.itemsize());
  }
  while (launched - finished > in_flight) finish();
}

at::Tensor ShardedOptimizer::State::wait(Pending& pending) {
  const auto start = std::chrono::steady_clock::now();
  at::Tensor result = pending.wait();
  seconds_waited += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  pending = {};
  return result;
}

void ShardedOptimizer::State::finish() {
  Bucket& bucket = buckets[finished++];
  std::vector<at::Tensor> grads;  // of the ranks
  if (bucket.coming.valid() && bucket.mine() > 0) {
    grads = wait(bucket.coming).split(bucket.mine());
  } else if (bucket.coming.valid()) {
    wait(bucket.coming);
  }
  const auto rank = static_cast<std::ptrdiff_t>(bucket.rank);
  if (bucket.mine() > 0) grads.insert(grads.begin() + rank, std::move(bucket.own));
  bucket.own.reset();
  add_up(bucket, grads);
  bucket.missing = bucket.hooked;
}

// In float32, in the order of ranks, after what is there. One gradient alone stays as it came.
void ShardedOptimizer::State::add_up(Bucket& bucket, const std::vector<at::Tensor>& grads) {
  for (const at::Tensor& grad : grads) {
    if (!bucket.sum.defined()) {
      bucket.sum = grad;
      bucket.sums_up = false;
      continue;
    }
    const at::Tensor to =
        bucket.sums_up ? bucket.sum : at::empty(bucket.sum.sizes(), on_device.dtype(at::kFloat));
    engine->add({bucket.sum}, {grad}, {to});
    bucket.sum = to;
    bucket.sums_up = true;
  }
}

// The sums become gradients of what this rank steps.
void ShardedOptimizer::State::give_gradients() {
  for (const Piece& piece : pieces) {
    const at::Tensor& sum = buckets[piece.bucket].sum;
    if (!sum.defined()) continue;
    const at::Tensor& target = stepped(piece);
    at::Tensor grad = sum.narrow(0, piece.begin, piece.elements).view(target.sizes());
    // Kernels step bf16 parameters by bf16 gradients.
    if (target.scalar_type() == at::kBFloat16) grad = grad.to(at::kBFloat16);
    target.mutable_grad() = std::move(grad);
  }
}

// ---- parameters -----------------------------------------------------------------
// All ranks send as much as the one that has most.
void ShardedOptimizer::State::start_gather(Bucket& bucket) {
  if (bucket.is_one_in_equal_parts()) {
    const at::Tensor whole = tensor(bucket.parameters.front()).detach().flatten();
    const auto first = static_cast<int64_t>(bucket.rank) * bucket.mine();
    bucket.coming =
        begin_all_gather_into(*bucket.group, whole, whole.narrow(0, first, bucket.mine()));
    bytes_sent += bucket.mine() * static_cast<int64_t>(whole.itemsize() * (bucket.ranks() - 1));
    return;
  }
  const int64_t most = *std::ranges::max_element(bucket.elements);
  const at::Tensor own = at::empty({most}, on_device.dtype(bucket.dtype));
  std::vector<at::Tensor> from, to;
  int64_t begin = 0;
  for (size_t j = 0; j < bucket.parameters.size(); ++j) {
    const RowRange& rows = bucket.shares[bucket.rank][j];
    if (rows.count == 0) continue;
    from.push_back(rows_of(tensor(bucket.parameters[j]), rows).flatten());
    to.push_back(own.narrow(0, begin, from.back().numel()));
    begin += from.back().numel();
  }
  if (!from.empty()) at::_foreach_copy_(to, from);
  if (begin < most) own.narrow(0, begin, most - begin).zero_();
  bucket.coming = begin_all_gather(*bucket.group, own);
  bytes_sent += static_cast<int64_t>(own.nbytes() * (bucket.ranks() - 1));
}

void ShardedOptimizer::State::end_gather(Bucket& bucket) {
  const at::Tensor all = wait(bucket.coming);
  if (bucket.is_one_in_equal_parts()) {
    // Nothing else tells who keeps forms of the parameter that it has changed.
    tensor(bucket.parameters.front()).unsafeGetTensorImpl()->bump_version();
    return;
  }
  const int64_t most = all.numel() / static_cast<int64_t>(bucket.ranks());
  std::vector<at::Tensor> from, to;
  for (size_t rank = 0; rank < bucket.ranks(); ++rank) {
    if (rank == bucket.rank) continue;
    int64_t begin = static_cast<int64_t>(rank) * most;
    for (size_t j = 0; j < bucket.parameters.size(); ++j) {
      const RowRange& rows = bucket.shares[rank][j];
      if (rows.count == 0) continue;
      to.push_back(rows_of(tensor(bucket.parameters[j]), rows));
      from.push_back(all.narrow(0, begin, to.back().numel()).view(to.back().sizes()));
      begin += to.back().numel();
    }
  }
  if (!to.empty()) at::_foreach_copy_(to, from);
}

// ---- the public face ------------------------------------------------------------
ShardedOptimizer::ShardedOptimizer(std::vector<ShardedParameter> parameters,
                                   const OptimizerOptions& options, const Group& data,
                                   const Group& expert_data, const ShardingOptions& sharding)
    : ShardedOptimizer(std::move(parameters), options,
                       ShardingGroups{.all = data, .expert_data = expert_data}, sharding) {}

ShardedOptimizer::ShardedOptimizer(std::vector<ShardedParameter> parameters,
                                   const OptimizerOptions& options, const ShardingGroups& groups,
                                   const ShardingOptions& sharding)
    : state_(std::make_unique<State>()) {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  s.parameters = std::move(parameters);
  s.groups = groups;
  s.in_flight = static_cast<size_t>(std::max<int64_t>(sharding.gradients_in_flight, 1));
  for (size_t i = 0; i < s.parameters.size(); ++i) {
    s.parameters[i].parameter.number = static_cast<int64_t>(i);
  }
  // What is frozen is not stepped.
  std::erase_if(s.parameters, [](const ShardedParameter& p) {
    return p.parameter.tensor.defined() && !p.parameter.tensor.requires_grad();
  });
  s.check();
  s.on_device = at::TensorOptions(s.tensor(0).device());
  s.make_buckets(std::max<int64_t>(sharding.bucket_elements, 1));
  // Kernels of backward go first; weights are waited for, gradients are not.
  for (Bucket& bucket : s.buckets) {
    bucket.of_gradients =
        s.on_device.device().is_cuda() ? background(*bucket.group) : *bucket.group;
  }
  s.make_pieces();
  s.make_slots();
  s.make_optimizers(options);
  if (sharding.overlap) s.hook();
}

ShardedOptimizer::~ShardedOptimizer() = default;
ShardedOptimizer::ShardedOptimizer(ShardedOptimizer&&) noexcept = default;
ShardedOptimizer& ShardedOptimizer::operator=(ShardedOptimizer&&) noexcept = default;

void ShardedOptimizer::accumulate() {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  while (s.launched < s.buckets.size()) s.launch();
  while (s.finished < s.buckets.size()) s.finish();
  s.launched = s.finished = 0;
}

at::Tensor ShardedOptimizer::clip_gradients() {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  s.give_gradients();
  const at::Tensor squares = at::zeros({s.slots}, s.on_device.dtype(at::kFloat));
  std::vector<at::Tensor> grads;
  for (const Piece& piece : s.pieces) {
    grads.push_back(s.stepped(piece).grad());
    MOE8_CHECK(grads.back().defined(), kOptimizer, "clip_gradients",
               "expected accumulate() before it");
  }
  if (!grads.empty()) squares.index_copy_(0, s.slot_of, s.engine->squares(grads));
  // A slot is one rank's: nothing is rounded in this sum.
  all_reduce_(s.groups.all, squares);
  const at::Tensor norm = s.engine->norm_of(squares);
  for (Bucket& bucket : s.buckets) {
    if (bucket.optimizer) bucket.optimizer->clip_gradients(norm);
  }
  return norm;
}

void ShardedOptimizer::set_learning_rate(double learning_rate) {
  for (Bucket& bucket : state_->buckets) {
    if (bucket.optimizer) bucket.optimizer->set_learning_rate(bucket.rate * learning_rate);
  }
}

void ShardedOptimizer::step() {
  const at::NoGradGuard no_grad;
  State& s = *state_;
  const bool was_clipped = !s.pieces.empty() && s.stepped(s.pieces.front()).grad().defined();
  if (!was_clipped) s.give_gradients();
  // A bucket travels while the next one steps. Those that come to where they shall lie take no memory
  // meanwhile, and nobody waits for them before the end.
  std::deque<Bucket*> in_memory;
  std::vector<Bucket*> in_place;
  const auto end_oldest = [&] {
    s.end_gather(*in_memory.front());
    in_memory.pop_front();
  };
  for (Bucket& bucket : s.buckets) {
    if (bucket.optimizer) bucket.optimizer->step();
    bucket.sum.reset();
    if (bucket.ranks() == 1) continue;
    s.start_gather(bucket);
    if (bucket.is_one_in_equal_parts()) {
      in_place.push_back(&bucket);
    } else {
      in_memory.push_back(&bucket);
      if (in_memory.size() >= kInMemory) end_oldest();
    }
  }
  while (!in_memory.empty()) end_oldest();
  for (Bucket* bucket : in_place) s.end_gather(*bucket);
}

// Counts of steps are the same for all parts: whoever has the first writes them.
std::vector<OwnedRows> ShardedOptimizer::state() const {
  const State& s = *state_;
  std::vector<OwnedRows> rows;
  for (const Bucket& bucket : s.buckets) {
    if (!bucket.optimizer) continue;
    for (auto& [name, tensor] : bucket.optimizer->state()) {
      const Piece& piece = s.piece_with(name);
      const bool is_first = s.first_row(piece) == 0 && s.first_column(piece) == 0;
      if (is_first || !State::is_count(name)) rows.push_back(s.place(name, tensor));
    }
  }
  return rows;
}

void ShardedOptimizer::restore(const std::function<at::Tensor(const OwnedRows& rows)>& read) {
  const State& s = *state_;
  for (Bucket& bucket : state_->buckets) {
    if (!bucket.optimizer) continue;
    bucket.optimizer->restore(
        [&](const std::string& name, const at::Tensor& like) { return read(s.place(name, like)); });
  }
}

std::vector<OwnedRows> ShardedOptimizer::owned() const {
  const State& s = *state_;
  std::vector<OwnedRows> rows;
  for (const Piece& piece : s.pieces) {
    const OptimizedParameter& parameter = s.parameters[piece.parameter].parameter;
    rows.push_back({parameter.name, s.first_row(piece), rows_of(parameter.tensor, piece.rows),
                    s.first_column(piece)});
  }
  return rows;
}

int64_t ShardedOptimizer::take_bytes_sent() {
  return std::exchange(state_->bytes_sent, 0);
}

double ShardedOptimizer::take_seconds_waited() {
  return std::exchange(state_->seconds_waited, 0.0);
}

}  // namespace moe8
