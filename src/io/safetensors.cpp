// SPDX-License-Identifier: BSD-3-Clause
// The data of safetensors files: opening, copying tensors out, saving.
#include "moe8/safetensors.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <bit>
#include <filesystem>
#include <optional>
#include <set>

#include "base/check.h"
#include "base/nearest.h"
#include "base/plain_text.h"
#include "io/file.h"
#include "io/foreign_file.h"
#include "io/safetensors_header.h"

namespace moe8 {
namespace {

static_assert(std::endian::native == std::endian::little, "the format is little-endian");

InputFile open_weights(const std::string& path) {
  std::error_code error;
  MOE8_CHECK(!std::filesystem::is_directory(path, error), kLoad, path,
             "expected a safetensors file, got ", directory_kind(path));
  return {kLoad, path};
}

uint64_t header_length(const InputFile& in) {
  MOE8_CHECK(in.size() >= kSafetensorsLengthBytes, kLoad, in.path(), "expected at least ",
             kSafetensorsLengthBytes, " bytes, got ", in.size(), ". Is this a safetensors file?");
  uint64_t length = 0;
  in.read(&length, sizeof length, 0);
  if (length <= kSafetensorsMaxHeader && length <= in.size() - kSafetensorsLengthBytes) {
    return length;
  }
  const std::optional<std::string> kind = foreign_kind(in);
  MOE8_CHECK(!kind, kLoad, in.path(), "expected a safetensors file, got ", *kind);
  fail(kLoad, in.path(),
       length > kSafetensorsMaxHeader
           ? concat("expected a header of at most ", kSafetensorsMaxHeader, " bytes, got ", length,
                    ". Is this a safetensors file?")
           : concat("expected a header of ", length, " bytes, got a file of ", in.size(),
                    " bytes. Is the file cut off?"));
}

// Contiguous on the CPU and free of autograd; bytes that LibTorch cannot copy by type go as U8.
at::Tensor plain(const at::Tensor& tensor) {
  at::Tensor value = tensor.detach().resolve_conj().resolve_neg();
  if (value._is_zerotensor()) value = value.clone();  // gives it memory
  if (value.element_size() == 1) value = value.view(at::kByte);
  return value.cpu().contiguous();
}

void check_saveable(const std::string& name, const at::Tensor& tensor, const std::string& file) {
  MOE8_CHECK(tensor.defined(), kSave, file, "tensor ", shown(name),
             ": expected data, got an undefined tensor");
  MOE8_CHECK(tensor.layout() == at::kStrided && !tensor.is_meta() && !tensor.is_nested(), kSave,
             file, "tensor ", shown(name), ": expected a dense tensor with data, got ",
             tensor.toString());
  const SafetensorsDtype* dtype = find_safetensors_dtype(tensor.scalar_type());
  MOE8_CHECK(dtype != nullptr, kSave, file, "tensor ", shown(name),
             ": expected a dtype that the format has, got ", tensor.scalar_type());
  MOE8_CHECK(dtype->packed == 1 || tensor.dim() > 0, kSave, file, "tensor ", shown(name),
             ": expected at least one dimension for ", dtype->name, ", got a scalar");
}

std::vector<int64_t> file_shape(const at::Tensor& tensor, const SafetensorsDtype& dtype) {
  std::vector<int64_t> shape = tensor.sizes().vec();
  if (dtype.packed > 1) shape.back() *= dtype.packed;
  return shape;
}

}  // namespace

// ---- reading ----------------------------------------------------------------
struct SafetensorsReader::File {
  explicit File(const std::string& path) : in(open_weights(path)) {
    std::string text(header_length(in), '\0');
    in.read(text.data(), text.size(), kSafetensorsLengthBytes);
    data_start = kSafetensorsLengthBytes + text.size();
    header = parse_safetensors_header(text, in.size() - data_start, path);
    for (size_t i = 0; i < header.entries.size(); ++i) index.emplace(header.entries[i].name, i);
  }

  /// A tensor as LibTorch has it.
  struct Stored {
    const SafetensorsEntry& entry;
    at::ScalarType type;
    std::vector<int64_t> shape;
  };
  Stored find(std::string_view name) const;
  // `out` is contiguous, and rows of the tensor from there on.
  void read(const Stored& stored, int64_t first_row, const at::Tensor& out) const;

  InputFile in;
  uint64_t data_start = 0;
  SafetensorsHeader header;
  std::map<std::string, size_t, std::less<>> index;  // name -> position in header.entries
};

SafetensorsReader::File::Stored SafetensorsReader::File::find(std::string_view name) const {
  const std::string& path = in.path();
  const auto found = index.find(name);
  if (found == index.end()) {
    std::vector<std::string> names;
    for (const SafetensorsEntry& entry : header.entries) names.push_back(entry.name);
    std::vector<std::string> closest;
    for (const std::string& one : nearest(name, names)) closest.push_back(shown(one));
    fail(kLoad, path,
         concat("expected one of its ", names.size(), " tensors, got ", shown(name),
                closest.empty() ? "" : ". Nearest: " + join(closest)));
  }
  const SafetensorsEntry& entry = header.entries[found->second];
  const SafetensorsDtype& dtype = *find_safetensors_dtype(entry.dtype);
  MOE8_CHECK(dtype.type != at::ScalarType::Undefined, kLoad, path, "tensor ", shown(name),
             ": expected a dtype that LibTorch has, got ", entry.dtype);
  Stored stored{entry, dtype.type, entry.shape};
  if (dtype.packed > 1) {
    MOE8_CHECK(!stored.shape.empty() && stored.shape.back() % dtype.packed == 0, kLoad, path,
               "tensor ", shown(name), ": expected a last size that is a multiple of ",
               dtype.packed, " for ", entry.dtype, ", got shape ", at::IntArrayRef(stored.shape));
    stored.shape.back() /= dtype.packed;
  }
  return stored;
}

void SafetensorsReader::File::read(const Stored& stored, int64_t first_row,
                                   const at::Tensor& out) const {
  const uint64_t count = out.nbytes();
  if (count == 0) return;
  auto* bytes = static_cast<uint8_t*>(out.data_ptr());
  const uint64_t row = out.dim() == 0 ? count : count / static_cast<uint64_t>(out.size(0));
  in.read(bytes, count, data_start + stored.entry.begin + static_cast<uint64_t>(first_row) * row);
  // Any other byte in a C++ bool is undefined behaviour later on.
  MOE8_CHECK(stored.type != at::kBool ||
                 std::all_of(bytes, bytes + count, [](uint8_t b) { return b < 2; }),
             kLoad, in.path(), "tensor ", shown(stored.entry.name),
             ": expected bytes 0 and 1 for BOOL, got others");
}

SafetensorsReader::SafetensorsReader(const std::string& path)
    : file_(std::make_unique<File>(path)) {}
SafetensorsReader::~SafetensorsReader() = default;
SafetensorsReader::SafetensorsReader(SafetensorsReader&&) noexcept = default;
SafetensorsReader& SafetensorsReader::operator=(SafetensorsReader&&) noexcept = default;

const std::vector<SafetensorsEntry>& SafetensorsReader::entries() const {
  return file_->header.entries;
}
const std::map<std::string, std::string>& SafetensorsReader::metadata() const {
  return file_->header.metadata;
}
bool SafetensorsReader::contains(std::string_view name) const {
  return file_->index.contains(name);
}

at::Tensor SafetensorsReader::tensor(std::string_view name) const {
  const File::Stored stored = file_->find(name);
  at::Tensor out = at::empty(stored.shape, at::TensorOptions().dtype(stored.type));
  file_->read(stored, 0, out);
  return out;
}

void SafetensorsReader::read_rows(std::string_view name, int64_t first_row,
                                  const at::Tensor& out) const {
  const File::Stored stored = file_->find(name);
  const bool is_plain =
      out.defined() && out.is_cpu() && out.layout() == at::kStrided && out.is_contiguous();
  MOE8_CHECK(is_plain && out.scalar_type() == stored.type, kLoad, "out",
             "expected contiguous memory of the CPU for ", stored.type, ", got ",
             out.defined() ? concat(out.toString(), " ", out.sizes()) : "an undefined tensor");
  const at::IntArrayRef whole = stored.shape, rows = out.sizes();
  const bool has_rows = !whole.empty() && rows.size() == whole.size();
  const bool fits = has_rows
                        ? first_row >= 0 && first_row <= whole[0] &&
                              rows[0] <= whole[0] - first_row && rows.slice(1) == whole.slice(1)
                        : first_row == 0 && rows == whole;
  MOE8_CHECK(fits, kLoad, file_->in.path(), "tensor ", shown(name), ": expected rows of ", whole,
             ", got ", rows, " from ", first_row, " on");
  file_->read(stored, first_row, out);
  out.unsafeGetTensorImpl()->bump_version();
}

std::map<std::string, at::Tensor> load_safetensors(const std::string& path) {
  const SafetensorsReader reader(path);
  std::map<std::string, at::Tensor> tensors;
  for (const SafetensorsEntry& entry : reader.entries()) {
    tensors.emplace(entry.name, reader.tensor(entry.name));
  }
  return tensors;
}

// ---- writing ----------------------------------------------------------------
void save_safetensors(const std::string& path,
                      const std::vector<std::pair<std::string, at::Tensor>>& tensors,
                      const std::map<std::string, std::string>& metadata) {
  std::set<std::string_view> names;
  std::vector<const std::pair<std::string, at::Tensor>*> order;
  for (const auto& named : tensors) {
    check_saveable(named.first, named.second, path);
    MOE8_CHECK(names.insert(named.first).second, kSave, path, "expected unique names, got ",
               shown(named.first), " twice");
    order.push_back(&named);
  }
  // The widest elements first keeps every tensor aligned for readers that map the file.
  std::ranges::stable_sort(order, std::greater{},
                           [](const auto* named) { return named->second.element_size(); });

  SafetensorsHeader header{.entries = {}, .metadata = metadata};
  uint64_t position = 0;
  for (const auto* named : order) {
    const SafetensorsDtype& dtype = *find_safetensors_dtype(named->second.scalar_type());
    const uint64_t end = position + named->second.nbytes();
    header.entries.push_back({.name = named->first,
                              .dtype = std::string(dtype.name),
                              .shape = file_shape(named->second, dtype),
                              .begin = position,
                              .end = end});
    position = end;
  }

  const std::string text = write_safetensors_header(header, path);
  const uint64_t length = text.size();
  AtomicFile out(kSave, path);
  out.write(&length, sizeof length);
  out.write(text.data(), text.size());
  for (const auto* named : order) {
    const at::Tensor bytes = plain(named->second);
    out.write(bytes.const_data_ptr(), bytes.nbytes());
  }
  out.commit();
}

}  // namespace moe8
