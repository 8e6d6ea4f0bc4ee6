// SPDX-License-Identifier: BSD-3-Clause
// Many processes that train one model: what their launcher said, the groups in which they work, and
// what they send each other. Upon LibTorch's c10d, whose process groups a Group hands out; its headers
// are not needed here. A program that was started without a launcher is a world of one process, in
// which every function works and nothing is sent.
#pragma once

#include <ATen/core/Tensor.h>
#include <c10/util/intrusive_ptr.h>

#include <chrono>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace c10d {
class ProcessGroup;
class Store;
}  // namespace c10d

namespace moe8 {

// ---- the launcher ---------------------------------------------------------------

/// Who this process is among those that a launcher started.
struct Launch {
  std::string launcher = "none";  // "torchrun", "mpirun", "srun", or "none": one process
  int64_t rank = 0;               // of world
  int64_t world = 1;
  int64_t local_rank = 0;      // of the processes of this machine
  int64_t restarts = 0;        // how often the launcher has started this job again
  std::string master_address;  // where rank 0 of the store listens; empty in a world of one
  uint16_t master_port = 0;
  bool has_agent_store = false;  // the launcher serves the store itself
};

/// What the environment says. The first of these whose variables are there counts:
///
///   torchrun  RANK, WORLD_SIZE, LOCAL_RANK, MASTER_ADDR, MASTER_PORT; the same set by hand
///   mpirun    OMPI_COMM_WORLD_RANK, _SIZE, _LOCAL_RANK; PMI_RANK, PMI_SIZE, MPI_LOCALRANKID
///   srun      SLURM_PROCID, SLURM_STEP_NUM_TASKS, SLURM_LOCALID
///
/// With mpirun and srun MASTER_ADDR and MASTER_PORT must be set unless all processes are on this
/// machine. None of them: one process.
/// @throws c10::Error when a variable is missing beside others or is no number of its range.
Launch launch_from_environment();

// ---- groups ---------------------------------------------------------------------

/// Processes that work together, and this one's place among them. Copies are the same group. A
/// default Group is this process alone.
class Group {
 public:
  Group();
  /// Around a process group of the program's own.
  /// @param name  for messages
  Group(const std::string& name, c10::intrusive_ptr<c10d::ProcessGroup> process_group);

  const std::string& name() const;
  int64_t rank() const;
  int64_t size() const;
  /// The ranks of the members in the world, ascending; those of an own process group count from 0.
  const std::vector<int64_t>& ranks() const;
  /// For LibTorch's functions; never null. Of a group of one process it is made at the first call.
  c10::intrusive_ptr<c10d::ProcessGroup> process_group() const;

  struct Impl;
  explicit Group(std::shared_ptr<Impl> impl);
  Impl& impl() const { return *impl_; }

 private:
  std::shared_ptr<Impl> impl_;
};

/// How the world is split; data parallelism takes what is left:
///
///   rank = (replica * expert + expert_rank) * tensor + tensor_rank
///
/// so the ranks of a tensor group are neighbours, and those of an expert group are neighbours among
/// the ranks that have the same tensor_rank.
struct ParallelLayout {
  int64_t expert = 1;  // over how many ranks the experts of a layer are spread
  int64_t tensor = 1;  // over how many ranks a dense weight is spread
};

/// What a world is started with.
struct ParallelOptions {
  ParallelLayout layout{};
  /// Where the tensors lie that are sent. kCPU: by Gloo. kCUDA: by NCCL, and by Gloo for those on the
  /// CPU; the process gets the GPU of its local rank.
  at::DeviceType device = at::kCPU;
  /// How long a process waits for others, to start and in every exchange.
  std::chrono::seconds timeout{600};
};

/// The world of this program. Every process makes one, with the same options; constructor and
/// shutdown() wait for all of them.
class Parallel {
 public:
  /// @throws c10::Error when the layout does not divide the world, when the others are not reached
  /// within the timeout, or when device is kCUDA and this build, LibTorch or machine cannot.
  explicit Parallel(const ParallelOptions& options = {},
                    const Launch& launch = launch_from_environment());
  /// shutdown(), or abort() while an exception passes through.
  ~Parallel();
  Parallel(const Parallel&) = delete;
  Parallel& operator=(const Parallel&) = delete;

  const Launch& launch() const;
  const ParallelOptions& options() const;
  /// Of this process: the CPU or a GPU with its index.
  at::Device device() const;

  const Group& world() const;        // all
  const Group& data() const;         // see different data: all of one tensor_rank
  const Group& expert() const;       // share the experts of a layer among them
  const Group& expert_data() const;  // hold the same experts; the ranks of a tensor group do
  const Group& tensor() const;       // share each dense weight among them

  /// The launcher's key-value store, for this start of the job; null in a world of one process.
  c10::intrusive_ptr<c10d::Store> store() const;

  /// Ends the groups in order, after all ranks have come here or the timeout has passed, at most 60
  /// seconds. The program must call it, or the destructor, before it exits. May be called twice.
  void shutdown();
  /// Ends them at once. The others learn `why` from the message of the exchange that fails there.
  void abort(const std::string& why);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// ---- what is sent -----------------------------------------------------------------
// Every rank of a group calls the same functions in the same order, on tensors of one dtype and of
// the same sizes but where it says otherwise; sizes may be 0. Tensors are of any dtype, on the CPU or
// on the GPU of a world of that device; dimension 0 is called rows. Results are new and contiguous,
// in a group of one they may be the argument itself. None is differentiable.
//
// An error names group and rank, and what a rank said that failed elsewhere; the group is of no
// further use then.

/// An exchange that has begun. Its tensors must not be touched before wait().
class Pending {
 public:
  Pending() = default;
  /// The result, when it is there; on a GPU the current stream waits, not the host. Once.
  at::Tensor wait();
  bool valid() const { return impl_ != nullptr; }

  struct Impl;
  explicit Pending(std::shared_ptr<Impl> impl) : impl_(std::move(impl)) {}

 private:
  std::shared_ptr<Impl> impl_;
};

/// Rank r gets the in_rows[r] rows after those of the ranks before it, and sends out_rows of this
/// rank; the result has them in the order of ranks.
/// @param in        [sum of in_rows, ...]
/// @param in_rows   [size]: rows for each rank
/// @param out_rows  [size]: rows from each rank, what it passes as in_rows[this rank]
/// @return          [sum of out_rows, ...]
at::Tensor all_to_all(const Group& group, const at::Tensor& in, at::IntArrayRef in_rows,
                      at::IntArrayRef out_rows);
Pending begin_all_to_all(const Group& group, const at::Tensor& in, at::IntArrayRef in_rows,
                         at::IntArrayRef out_rows);

/// The rows of all ranks, in their order.
/// @param in  [n, ...]
/// @return    [size * n, ...]
at::Tensor all_gather(const Group& group, const at::Tensor& in);
Pending begin_all_gather(const Group& group, const at::Tensor& in);

/// What becomes of the elements of several ranks.
enum class Reduction { SUM, MAX, MIN };

/// Adds up, and leaves rank r the r-th part.
/// On the CPU in the order of ranks, in float32 or wider, rounded once: the same bits whoever adds.
/// On GPUs in NCCL's order and in the tensors' dtype.
/// @param in  [size * n, ...] of a floating-point or integer dtype, not FP8
/// @return    [n, ...]
at::Tensor reduce_scatter(const Group& group, const at::Tensor& in);
Pending begin_reduce_scatter(const Group& group, const at::Tensor& in);

/// In place, on every rank the same bits; sums as reduce_scatter() adds.
/// @param tensor  contiguous, of a floating-point or integer dtype, not FP8
void all_reduce_(const Group& group, const at::Tensor& tensor,
                 Reduction reduction = Reduction::SUM);

/// In place: what the rank `from` of the group has.
/// @param tensor  contiguous
void broadcast_(const Group& group, const at::Tensor& tensor, int64_t from = 0);

/// Returns when all ranks are here. The host waits.
void barrier(const Group& group);

/// The text of every rank, in their order.
std::vector<std::string> all_gather_text(const Group& group, const std::string& text);

}  // namespace moe8
