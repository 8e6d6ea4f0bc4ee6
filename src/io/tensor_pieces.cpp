// SPDX-License-Identifier: BSD-3-Clause
#include "io/tensor_pieces.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "base/check.h"
#include "base/nearest.h"
#include "io/row_runs.h"
#include "io/safetensors_header.h"

namespace moe8 {
namespace {

constexpr const char* kInfo = "DCP_SHARDING_INFO";
constexpr const char* kOffsets = "saved_offsets";

// The part of x, which lies at `at` of the whole tensor, that `box` is.
at::Tensor slice(at::Tensor x, const std::vector<int64_t>& at, const Box& box) {
  for (size_t d = 0; d < box.sizes.size(); ++d) {
    x = x.narrow(static_cast<int64_t>(d), box.offsets[d] - at[d], box.sizes[d]);
  }
  return x;
}

// Empty: the file holds whole tensors.
nlohmann::json sharding_info(const SafetensorsReader& file, const std::string& path) {
  const auto found = file.metadata().find(kInfo);
  if (found == file.metadata().end()) return nullptr;
  nlohmann::json info = nlohmann::json::parse(found->second, nullptr, /*allow_exceptions=*/false);
  MOE8_CHECK(info.is_object(), kLoad, path, "expected ", kInfo, " to be a JSON object");
  return info;
}

std::vector<int64_t> offsets_of(const SafetensorsEntry& entry, const nlohmann::json& info,
                                const std::string& path) {
  if (info.is_null()) return std::vector<int64_t>(entry.shape.size());
  try {
    auto offsets = info.at(entry.name).at(kOffsets).get<std::vector<int64_t>>();
    constexpr int64_t kMost = int64_t{1} << 60;  // sums with sizes fit
    const bool fits =
        offsets.size() == entry.shape.size() &&
        std::ranges::all_of(offsets, [](int64_t o) { return o >= 0 && o <= kMost; }) &&
        std::ranges::all_of(entry.shape, [](int64_t s) { return s <= kMost; });
    if (fits) return offsets;
  } catch (const nlohmann::json::exception&) {
  }
  fail(kLoad, path,
       concat("tensor ", shown(entry.name), ": expected ", entry.shape.size(), " offsets in ",
              kInfo, ", got others"));
}

}  // namespace

// ---- boxes --------------------------------------------------------------------
int64_t Box::volume() const {
  int64_t product = 1;
  for (const int64_t size : sizes) product *= size;
  return product;
}

std::optional<Box> intersection(const Box& a, const Box& b) {
  Box common;
  for (size_t d = 0; d < a.sizes.size(); ++d) {
    const int64_t begin = std::max(a.offsets[d], b.offsets[d]);
    const int64_t end = std::min(a.offsets[d] + a.sizes[d], b.offsets[d] + b.sizes[d]);
    if (begin >= end) return std::nullopt;
    common.offsets.push_back(begin);
    common.sizes.push_back(end - begin);
  }
  return common;
}

// ---- writing ------------------------------------------------------------------
std::string shard_file_name(int64_t index) {
  // PyTorch counts shards from 1; each of ours is one file.
  return formatted("shard-%05lld-model-00001-of-00001.safetensors",
                   static_cast<long long>(index) + 1);
}

void save_pieces(const std::string& path, const std::vector<TensorPiece>& pieces,
                 std::map<std::string, std::string> metadata) {
  nlohmann::json info = nlohmann::json::object();
  std::vector<std::pair<std::string, at::Tensor>> tensors;
  for (const TensorPiece& piece : pieces) {
    MOE8_CHECK(static_cast<int64_t>(piece.offsets.size()) == piece.data.dim(), kSave, path,
               "tensor ", shown(piece.name), ": expected ", piece.data.dim(), " offsets, got ",
               piece.offsets.size());
    info[piece.name] = {{kOffsets, piece.offsets}};
    tensors.emplace_back(piece.name, piece.data);
  }
  metadata.emplace("format", "pt");
  metadata.emplace("DCP_VERSION", "1.0");
  metadata.emplace(
      kInfo, info.dump(-1, ' ', /*ensure_ascii=*/true, nlohmann::json::error_handler_t::replace));
  save_safetensors(path, tensors, metadata);
}

// ---- reading ------------------------------------------------------------------
PieceReader::PieceReader(std::vector<std::string> paths) : paths_(std::move(paths)) {
  for (size_t file = 0; file < paths_.size(); ++file) {
    files_.emplace_back(paths_[file]);
    add(file);
  }
}

void PieceReader::add(size_t file) {
  const std::string& path = paths_[file];
  const nlohmann::json info = sharding_info(files_[file], path);
  for (const SafetensorsEntry& entry : files_[file].entries()) {
    Whole& whole = tensors_[entry.name];
    if (whole.pieces.empty()) {
      whole.dtype = entry.dtype;
      whole.sizes.assign(entry.shape.size(), 0);
    }
    MOE8_CHECK(whole.dtype == entry.dtype && whole.sizes.size() == entry.shape.size(), kLoad, path,
               "tensor ", shown(entry.name), ": expected ", whole.dtype, " of ", whole.sizes.size(),
               " dimensions, as in ", paths_[whole.pieces.front().file], ", got ", entry.dtype,
               " of ", entry.shape.size());
    Piece piece{file, {offsets_of(entry, info, path), entry.shape}};
    for (size_t d = 0; d < entry.shape.size(); ++d) {
      whole.sizes[d] = std::max(whole.sizes[d], piece.box.offsets[d] + entry.shape[d]);
    }
    whole.pieces.push_back(std::move(piece));
  }
}

std::vector<std::string> PieceReader::names() const {
  std::vector<std::string> names;
  for (const auto& [name, whole] : tensors_) names.push_back(name);
  return names;
}

bool PieceReader::contains(std::string_view name) const {
  return tensors_.contains(name);
}

const PieceReader::Whole& PieceReader::find(std::string_view name) const {
  const auto found = tensors_.find(name);
  if (found != tensors_.end()) return found->second;
  std::vector<std::string> closest;
  for (const std::string& one : nearest(name, names())) closest.push_back(shown(one));
  fail(kLoad, where(),
       concat("expected one of its ", tensors_.size(), " tensors, got ", shown(name),
              closest.empty() ? "" : ". Nearest: " + join(closest)));
}

std::string PieceReader::where() const {
  if (paths_.empty()) return "no files";
  const std::string more = paths_.size() > 1 ? concat(" and ", paths_.size() - 1, " more") : "";
  return paths_.front() + more;
}

std::vector<int64_t> PieceReader::sizes(std::string_view name) const {
  return find(name).sizes;
}

const std::string& PieceReader::dtype(std::string_view name) const {
  return find(name).dtype;
}

std::string PieceReader::dtype_name(at::ScalarType type) {
  const SafetensorsDtype* const found = find_safetensors_dtype(type);
  return found ? std::string(found->name) : "";
}

at::ScalarType PieceReader::dtype_of(std::string_view name) {
  const SafetensorsDtype* const found = find_safetensors_dtype(name);
  return found ? found->type : at::ScalarType::Undefined;
}

std::vector<PieceReader::Part> PieceReader::parts_of(std::string_view name, const Box& box) const {
  const Whole& whole = find(name);
  MOE8_CHECK(box.sizes.size() == whole.sizes.size(), kLoad, where(), "tensor ", shown(name),
             ": expected a box of ", whole.sizes.size(), " dimensions, got ", box.sizes.size());
  std::vector<Part> parts;
  int64_t covered = 0;
  for (const Piece& piece : whole.pieces) {
    const std::optional<Box> part = intersection(piece.box, box);
    if (!part) continue;
    for (const Part& other : parts) {
      MOE8_CHECK(!intersection(other.box, *part), kLoad, paths_[piece.file], "tensor ", shown(name),
                 ": expected each element in one file, got some in two");
    }
    covered += part->volume();
    parts.push_back({piece, *part});
  }
  MOE8_CHECK(covered == box.volume(), kLoad, where(), "tensor ", shown(name), ": expected all of ",
             at::IntArrayRef(box.sizes), " from ", at::IntArrayRef(box.offsets), " on, got ",
             covered, " of ", box.volume(), " elements. Is a file missing?");
  return parts;
}

void PieceReader::check(std::string_view name, const Box& box) const {
  parts_of(name, box);
}

void PieceReader::read_into(std::string_view name, const Box& box, const at::Tensor& out) const {
  for (const auto& [piece, part] : parts_of(name, box)) {
    const SafetensorsReader& file = files_[piece.file];
    const at::IntArrayRef of_part = part.sizes, of_piece = piece.box.sizes, of_box = box.sizes;
    const bool is_rows = !of_box.empty() && of_part.slice(1) == of_piece.slice(1) &&
                         of_part.slice(1) == of_box.slice(1);
    if (!is_rows) {
      slice(out, box.offsets, part).copy_(slice(file.tensor(name), piece.box.offsets, part));
      continue;
    }
    const at::Tensor rows = out.narrow(0, part.offsets[0] - box.offsets[0], of_part[0]);
    const int64_t first = part.offsets[0] - piece.box.offsets[0];
    const int64_t row_bytes = static_cast<int64_t>(rows.nbytes()) / of_part[0];
    for_each_run_of_rows(of_part[0], row_bytes, [&](int64_t begin, int64_t end) {
      file.read_rows(name, first + begin, rows.narrow(0, begin, end - begin));
    });
  }
}

at::Tensor PieceReader::read(std::string_view name, const Box& box) const {
  const Whole& whole = find(name);
  const SafetensorsDtype& dtype = *find_safetensors_dtype(whole.dtype);
  const bool is_as_it_lies = whole.pieces.size() == 1 && whole.pieces.front().box == box;
  // Several elements in one of LibTorch's, or none that it has.
  const bool is_odd = dtype.packed > 1 || dtype.type == at::ScalarType::Undefined;
  if (is_as_it_lies && (is_odd || box.sizes.empty())) {
    return files_[whole.pieces.front().file].tensor(name);
  }
  MOE8_CHECK(!is_odd, kLoad, where(), "tensor ", shown(name),
             ": expected a dtype that can be cut into pieces, got ", whole.dtype);
  at::Tensor out = at::empty(box.sizes, at::TensorOptions().dtype(dtype.type));
  read_into(name, box, out);
  return out;
}

at::Tensor PieceReader::read(std::string_view name) const {
  const Whole& whole = find(name);
  return read(name, {std::vector<int64_t>(whole.sizes.size()), whole.sizes});
}

}  // namespace moe8
