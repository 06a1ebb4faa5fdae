// The models in the caches, for a person.
#pragma once

#include <chrono>
#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "hub/settings.h"

namespace deepinfer::hub {

struct ListedModel {
  std::string name;  // what --model takes
  std::string file;  // "Q4_K_M", "safetensors bfloat16", "not complete", "no model"
  uint64_t size = 0;
  std::filesystem::path path;
  std::chrono::system_clock::time_point used;  // read last; the system may count whole days only
};

// By name. What the hub's cache holds, then the models of this program's own cache.
std::vector<ListedModel> list_models(const Settings& settings);

// The table, with a line of its columns' names; a sentence when there is none.
std::string list_text(const std::vector<ListedModel>& models, std::chrono::system_clock::time_point now);

// "just now", "5 minutes ago", "yesterday", "12 days ago"
std::string ago_text(std::chrono::seconds age);

}  // namespace deepinfer::hub
