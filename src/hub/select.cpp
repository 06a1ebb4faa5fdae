#include "hub/select.h"

#include <algorithm>
#include <array>
#include <map>
#include <string_view>

#include "base/check.h"
#include "hub/model_ref.h"

namespace deepinfer::hub {
namespace {

constexpr size_t kShown = 30;

std::string base_name(const std::string& path) {
  return path.substr(path.rfind('/') + 1);
}

bool has(const std::vector<Listed>& files, std::string_view name) {
  return std::any_of(files.begin(), files.end(), [&](const Listed& f) { return f.name == name; });
}

// What the engine reads of a Hugging Face folder besides its weights.
bool is_description(const std::string& name) {
  static constexpr std::array<std::string_view, 9> kNames = {"config.json",
                                                             "generation_config.json",
                                                             "tokenizer.json",
                                                             "tokenizer.model",
                                                             "tokenizer_config.json",
                                                             "special_tokens_map.json",
                                                             "added_tokens.json",
                                                             "vocab.json",
                                                             "merges.txt"};
  return std::find(kNames.begin(), kNames.end(), name) != kNames.end() ||
         (name.starts_with("chat_template") && name.find('/') == std::string::npos &&
          (name.ends_with(".jinja") || name.ends_with(".json")));
}

std::string list_text(const std::vector<const GgufModel*>& models) {
  std::string out;
  for (size_t i = 0; i < models.size() && i < kShown; ++i) {
    const GgufModel& m = *models[i];
    out += fmt::format("\n  {:<12} {:>9}  {}{}", m.quantization.empty() ? "-" : m.quantization,
                       m.size == 0 ? "" : size_text(m.size), printable(m.parts.front().name),
                       m.parts.size() > 1 ? fmt::format(" (and {} more parts)", m.parts.size() - 1) : "");
  }
  if (models.size() > kShown) out += fmt::format("\n  and {} more", models.size() - kShown);
  return out;
}

std::vector<const GgufModel*> pointers(const std::vector<GgufModel>& models) {
  std::vector<const GgufModel*> out;
  for (const GgufModel& m : models) out.push_back(&m);
  return out;
}

Selection of(const GgufModel& model) {
  Selection s;
  for (const Listed& part : model.parts) s.files.push_back(part.name);
  s.main = s.files.front();
  return s;
}

Error ambiguous(const std::vector<const GgufModel*>& models, const std::string& where) {
  const GgufModel& first = *models.front();
  const std::string example = first.quantization.empty() ? first.parts.front().name : first.quantization;
  return make_error(ErrorCode::kModel, "{}: {} files fit: name one, as in {}:{}{}", where, models.size(),
                    where, example, list_text(models));
}

template <class Fits>
std::vector<const GgufModel*> filter(const std::vector<GgufModel>& models, Fits fits) {
  std::vector<const GgufModel*> out;
  for (const GgufModel& m : models)
    if (fits(m)) out.push_back(&m);
  return out;
}

template <class Fits>
bool any_part(const GgufModel& model, Fits fits) {
  return std::any_of(model.parts.begin(), model.parts.end(), fits);
}

// Most exact first: the whole name, the name without its folders, the quantization.
std::vector<const GgufModel*> fitting(const std::vector<GgufModel>& models, const std::string& file) {
  const std::string name = lower(file);
  auto out = filter(models, [&](const GgufModel& m) {
    return any_part(m, [&](const Listed& f) { return f.name == file; });
  });
  if (out.empty())
    out = filter(models, [&](const GgufModel& m) {
      return any_part(
          m, [&](const Listed& f) { return lower(f.name) == name || lower(base_name(f.name)) == name; });
    });
  const std::string tag = upper(file);
  if (out.empty()) out = filter(models, [&](const GgufModel& m) { return m.quantization == tag; });
  if (out.empty()) out = filter(models, [&](const GgufModel& m) { return m.quantization == "UD-" + tag; });
  return out;
}

Result<Selection> select_named(const std::vector<Listed>& files, const std::vector<GgufModel>& models,
                               const std::string& file, const std::string& where) {
  const auto fit = fitting(models, file);
  if (fit.size() == 1) return of(*fit.front());
  if (fit.size() > 1) return ambiguous(fit, where);
  if (has(files, file)) return Selection{{file}, file, false};
  return make_error(ErrorCode::kNotFound, "{}: no file and no quantization '{}'{}{}", where, printable(file),
                    models.empty() ? ": it has no GGUF files" : "; it has:", list_text(pointers(models)));
}

}  // namespace

std::vector<GgufModel> gguf_models(const std::vector<Listed>& files) {
  std::map<std::string, GgufModel> models;
  for (const Listed& f : files) {
    const std::string name = lower(base_name(f.name));
    if (!name.ends_with(".gguf") || name.find("mmproj") != std::string::npos ||
        name.find("imatrix") != std::string::npos)
      continue;
    GgufModel& m = models[split_base(f.name)];
    m.quantization = quantization_of(f.name);
    m.size += f.size;
    m.parts.push_back(f);
  }
  std::vector<GgufModel> out;
  for (auto& [base, model] : models) {
    std::sort(model.parts.begin(), model.parts.end(),
              [](const Listed& a, const Listed& b) { return a.name < b.name; });
    out.push_back(std::move(model));
  }
  return out;
}

Result<Selection> select_files(const std::vector<Listed>& files, const std::string& file,
                               const std::string& where) {
  const std::vector<GgufModel> models = gguf_models(files);
  if (!file.empty()) return select_named(files, models, file, where);
  const bool single = has(files, kSingleFile);
  if (single || has(files, kIndexFile)) {
    Selection s;
    for (const Listed& f : files)
      if (is_description(f.name)) s.files.push_back(f.name);
    s.files.push_back(single ? kSingleFile : kIndexFile);
    s.needs_index = !single;
    std::sort(s.files.begin(), s.files.end());
    return s;
  }
  if (models.size() == 1) return of(models.front());
  if (models.size() > 1) return ambiguous(pointers(models), where);
  return make_error(ErrorCode::kNotFound,
                    "{}: nothing in it that can be read: expected {}, {} or a .gguf file among its {} files",
                    where, kSingleFile, kIndexFile, files.size());
}

}  // namespace deepinfer::hub
