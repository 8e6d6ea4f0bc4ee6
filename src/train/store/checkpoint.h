// SPDX-License-Identifier: BSD-3-Clause
// One checkpoint: a folder that appears whole or not at all. Which ones a run keeps:
// checkpoint_folder.h.
//   model.safetensors      the weights, for any reader of safetensors
//   training.safetensors   AdamW's moments, float32 masters, the random generator
//                          of several ranks both in pieces, a pair of files per rank:
//   shard-00001-model-00001-of-00001.safetensors, shard-00001-training.safetensors, ...
//   run.toml               the config that made it
//   state.json             step, position in the data, losses so far, fingerprint of the text
//   checksums.txt          XXH3 of all others; `xxh128sum -c checksums.txt` checks them too
#pragma once

#include <map>
#include <string>
#include <vector>

#include "io/tensor_pieces.h"
#include "moe8/parallel.h"
#include "train/config/run_config.h"
#include "train/store/named_tensors.h"
#include "train/store/run_state.h"

namespace moe8 {

/// What the last bits of a loss may depend on besides the config: "threads" -> "2".
using Environment = std::map<std::string, std::string>;
Environment this_environment(const c10::Device& device = c10::kCPU);

/// What a checkpoint says about itself.
struct CheckpointInfo {
  RunConfig config;
  RunState state;
  std::vector<std::string> text;  // TextData::fingerprints
  Environment environment;
  int64_t ranks = 1;  // that wrote it

  bool operator==(const CheckpointInfo&) const = default;
};

/// Weights, and what besides them decides how training goes on: of several ranks, what one of them
/// writes.
struct CheckpointTensors {
  std::vector<TensorPiece> model;
  std::vector<TensorPiece> training;
};

/// Writes everything beside `path`, flushes it to the disk, and gives it the name. Every rank of
/// `ranks` calls it with the same path and info, in a folder that all of them see; each writes its
/// pieces, and when all are done the first gives the name.
/// @throws c10::Error on a failure to write, on all ranks that of the first that failed; nothing is
///         left behind then, and nothing that was there is changed.
void write_checkpoint(const std::string& path, const CheckpointInfo& info,
                      const CheckpointTensors& tensors, const Group& ranks = {});

/// Reads every byte. @throws c10::Error naming the file that is missing, is not what was written or
/// does not belong to it.
void check_checkpoint(const std::string& path);

/// Of a checkpoint that check_checkpoint accepts.
/// @throws c10::Error when another version of moe8 wrote it in another way.
CheckpointInfo read_checkpoint_info(const std::string& path);

struct CheckpointFiles {
  std::string path;

  std::string model() const { return path + "/model.safetensors"; }
  std::string training() const { return path + "/training.safetensors"; }
  /// Of one rank the two above, of several the files of each.
  std::vector<std::string> models(int64_t ranks) const;
  std::vector<std::string> trainings(int64_t ranks) const;
  std::string config() const { return path + "/run.toml"; }
  std::string state() const { return path + "/state.json"; }
  std::string checksums() const { return path + "/checksums.txt"; }
};

}  // namespace moe8
