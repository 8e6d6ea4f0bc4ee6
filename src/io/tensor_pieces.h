// SPDX-License-Identifier: BSD-3-Clause
// Tensors in pieces, spread over several safetensors files, as PyTorch's distributed checkpoint
// (torch.distributed.checkpoint.HuggingFaceStorageReader) reads them.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "moe8/safetensors.h"

namespace moe8 {

/// A box of a tensor: where it begins and how large it is, per dimension.
struct Box {
  std::vector<int64_t> offsets;
  std::vector<int64_t> sizes;

  /// Elements; 1 of a scalar's box.
  int64_t volume() const;
  bool operator==(const Box&) const = default;
};

/// What two boxes of one tensor share; nothing where that is empty.
std::optional<Box> intersection(const Box& a, const Box& b);

/// A box of the tensor `name`, with its values.
struct TensorPiece {
  std::string name;
  std::vector<int64_t> offsets;
  at::Tensor data;
};

/// PyTorch's name of the file in which shard number `index` (from 0) keeps its part of a model.
std::string shard_file_name(int64_t index);

/// Writes pieces as save_safetensors() does, and where each begins as PyTorch does: the metadata
/// DCP_SHARDING_INFO = {"name": {"saved_offsets": [...]}, ...}, DCP_VERSION and format.
/// @throws c10::Error as save_safetensors(): one piece of each tensor fits into a file.
void save_pieces(const std::string& path, const std::vector<TensorPiece>& pieces,
                 std::map<std::string, std::string> metadata = {});

/// Reads tensors, or boxes of them, from a set of such files, however they were cut. A file without
/// DCP_SHARDING_INFO holds whole tensors.
class PieceReader {
 public:
  /// @throws c10::Error that names the file which is no safetensors file, or whose sharding info
  /// does not fit its tensors or the other files.
  explicit PieceReader(std::vector<std::string> paths);

  /// All tensors, sorted.
  std::vector<std::string> names() const;
  bool contains(std::string_view name) const;
  /// What the pieces that are there cover, and their dtype: "F32".
  std::vector<int64_t> sizes(std::string_view name) const;
  const std::string& dtype(std::string_view name) const;
  static std::string dtype_name(at::ScalarType type);  // "F32"; empty: files cannot hold it
  static at::ScalarType dtype_of(std::string_view name);

  /// The files, for messages.
  std::string where() const;

  /// A copy on the CPU. @throws c10::Error when there is no such tensor, a part of the box is in
  /// none of the files (it says which files there are), or in two.
  at::Tensor read(std::string_view name, const Box& box) const;
  at::Tensor read(std::string_view name) const;
  /// The same into memory that is there, contiguous on the CPU and of the box' sizes and that dtype; on
  /// all threads, and where a file holds its rows straight from there.
  void read_into(std::string_view name, const Box& box, const at::Tensor& out) const;
  /// Reads nothing, but throws as read() does where that finds parts missing, or in two files.
  void check(std::string_view name, const Box& box) const;

 private:
  struct Piece {
    size_t file;
    Box box;
  };
  // What a piece has of a box.
  struct Part {
    const Piece& piece;
    Box box;
  };
  struct Whole {
    std::string dtype;
    std::vector<int64_t> sizes;
    std::vector<Piece> pieces;
  };

  void add(size_t file);
  const Whole& find(std::string_view name) const;
  std::vector<Part> parts_of(std::string_view name, const Box& box) const;

  std::vector<std::string> paths_;
  std::vector<SafetensorsReader> files_;
  std::map<std::string, Whole, std::less<>> tensors_;
};

}  // namespace moe8
