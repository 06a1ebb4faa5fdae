#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json/parse.hpp>

#include "device/gpu_text.h"

namespace deepinfer {
namespace {

namespace json = boost::json;
using testing::HasSubstr;

GpuReport one_card() {
  GpuReport report{.driver_version = "580.82.07", .cuda_version = 13000};
  report.gpus.push_back({.id = 0,
                         .name = "NVIDIA GeForce RTX 5090",
                         .uuid = "GPU-1",
                         .total_bytes = 32ULL << 30,
                         .free_bytes = 3ULL << 29,
                         .capability = ComputeCapability{12, 0},
                         .utilization = 37,
                         .temperature = 55,
                         .power = 120.5,
                         .power_limit = 575,
                         .processes = {{4242, 3ULL << 30, "python\"3"}, {77, std::nullopt, ""}}});
  return report;
}

TEST(GpuJson, HasExactlyTheFieldsOfTheInterface) {
  const json::value doc = json::parse(gpu_json(one_card()));
  EXPECT_EQ(doc.at("gpu_count").as_int64(), 1);
  EXPECT_TRUE(doc.at("message").is_null());
  const json::object& gpu = doc.at("gpus").at(0).as_object();
  std::vector<std::string> names;
  for (const auto& [name, value] : gpu) names.emplace_back(name);
  EXPECT_THAT(names,
              testing::ElementsAre("id", "name", "total_memory_gb", "free_memory_gb", "compute_capability",
                                   "driver_version", "cuda_version", "is_nvidia_5090", "is_nvidia_4090",
                                   "utilization", "temperature", "power", "recommended"));
  EXPECT_EQ(gpu.at("id").as_int64(), 0);
  EXPECT_EQ(gpu.at("total_memory_gb").as_double(), 32.0);
  EXPECT_EQ(gpu.at("free_memory_gb").as_double(), 1.5);
  EXPECT_EQ(gpu.at("compute_capability").as_string(), "12.0");
  EXPECT_EQ(gpu.at("driver_version").as_string(), "580.82.07");
  EXPECT_EQ(gpu.at("cuda_version").as_string(), "13.0");
  EXPECT_TRUE(gpu.at("is_nvidia_5090").as_bool());
  EXPECT_FALSE(gpu.at("is_nvidia_4090").as_bool());
  EXPECT_EQ(gpu.at("utilization").as_int64(), 37);
  EXPECT_EQ(gpu.at("temperature").as_int64(), 55);
  EXPECT_EQ(gpu.at("power").as_double(), 120.5);
  const json::object& r = gpu.at("recommended").as_object();
  EXPECT_EQ(r.at("gpu_memory_utilization").as_double(), 0.95);
  EXPECT_EQ(r.at("max_num_seqs").as_int64(), 512);
  EXPECT_TRUE(r.at("nvidia_5090_optimizations").as_bool());
  EXPECT_EQ(r.at("source").as_string(), "RTX 5090");
}

TEST(GpuJson, UnknownValuesAreNull) {
  const json::value doc = json::parse(gpu_json({.gpus = {{}}}, true));
  const json::object& gpu = doc.at("gpus").at(0).as_object();
  for (const char* name :
       {"name", "total_memory_gb", "free_memory_gb", "compute_capability", "driver_version", "cuda_version",
        "utilization", "temperature", "power", "uuid", "pci_bus_id", "power_limit", "problem"})
    EXPECT_TRUE(gpu.at(name).is_null()) << name;
}

TEST(GpuJson, DetailAndStrangeNames) {
  GpuReport report = one_card();
  report.gpus[0].processes[0].name = "a\n\x01\xff\"\\";
  const json::value doc = json::parse(gpu_json(report, true));
  const json::value& gpu = doc.at("gpus").at(0);
  EXPECT_EQ(gpu.at("processes").at(0).at("name").as_string(), "a\n\x01?\"\\");
  EXPECT_EQ(gpu.at("processes").at(0).at("memory_gb").as_double(), 3.0);
  EXPECT_TRUE(gpu.at("processes").at(1).at("memory_gb").is_null());
}

TEST(GpuJson, NoGpu) {
  EXPECT_EQ(gpu_json({.message = "no \"driver\""}), R"({"gpu_count":0,"gpus":[],"message":"no \"driver\""})");
}

TEST(GpuTable, OneCard) {
  const std::string table = gpu_table(one_card());
  for (const char* part :
       {"580.82.07", "13.0", "RTX 5090", "1.5 of 32.0 GiB", "12.0", "37 %", "55 C", "of 575 W",
        "0.95 of memory, 512 sequences", "(pid 4242) 3.0 GiB, pid 77 (size unknown)"})
    EXPECT_THAT(table, HasSubstr(part));
}

GpuReport two_cards(const std::vector<std::vector<int>>& peers) {
  GpuReport report;
  for (int i = 0; i < 2; ++i) report.gpus.push_back({.id = i, .name = "Card", .peers = peers.at(i)});
  report.libraries = {{"cuBLASLt", "13.1.0", "/lib/libcublasLt.so.13", ""}, {"NCCL", "", "", "NCCL: none"}};
  return report;
}

TEST(GpuJson, PeersAndLibrariesAreDetail) {
  const GpuReport report = two_cards({{1}, {}});
  const json::value doc = json::parse(gpu_json(report, true));
  EXPECT_EQ(doc.at("gpus").at(0).at("peers"), json::parse("[1]"));
  EXPECT_EQ(doc.at("gpus").at(1).at("peers"), json::parse("[]"));
  EXPECT_EQ(doc.at("libraries"),
            json::parse(R"([{"name": "cuBLASLt", "version": "13.1.0", "path": "/lib/libcublasLt.so.13",
                             "problem": null},
                            {"name": "NCCL", "version": null, "path": null, "problem": "NCCL: none"}])"));
  const json::value brief = json::parse(gpu_json(report));
  EXPECT_FALSE(brief.as_object().contains("libraries"));
  EXPECT_FALSE(brief.at("gpus").at(0).as_object().contains("peers"));
  EXPECT_TRUE(json::parse(gpu_json(one_card(), true)).at("gpus").at(0).at("peers").is_null());
}

TEST(GpuTable, PeersAndLibraries) {
  EXPECT_THAT(gpu_table(two_cards({{1}, {0}})), HasSubstr("Peer access: between all GPUs."));
  EXPECT_THAT(gpu_table(two_cards({{}, {}})), HasSubstr("Peer access: none"));
  const std::string table = gpu_table(two_cards({{1}, {}}));
  for (const char* part : {"GPU 0 reads the memory of GPU 1\n", "GPU 1 reads the memory of no other\n",
                           "cuBLASLt 13.1.0 (/lib/libcublasLt.so.13)\n", "NCCL: none\n"})
    EXPECT_THAT(table, HasSubstr(part));
  EXPECT_THAT(gpu_table(one_card()), testing::Not(HasSubstr("Peer access")));
}

TEST(GpuTable, UnknownAndUnusable) {
  GpuReport report{.gpus = {{}}, .message = "too old"};
  report.gpus[0].problem = "too old";
  const std::string table = gpu_table(report);
  EXPECT_THAT(table, HasSubstr("? of ? GiB"));
  EXPECT_THAT(table, HasSubstr("cannot be used: too old"));
}

TEST(GpuTable, NoGpuSaysWhy) {
  EXPECT_EQ(gpu_table({.message = "no driver"}), "No GPU: no driver.\nModels run on the CPU.\n");
}

TEST(GpuText, ProcessesAreCut) {
  GpuInfo gpu;
  for (uint32_t pid = 1; pid <= 7; ++pid) gpu.processes.push_back({pid, 1ULL << 30, ""});
  EXPECT_THAT(processes_text(gpu, 2), testing::StrEq("pid 1 1.0 GiB, pid 2 1.0 GiB and 5 more"));
  EXPECT_EQ(processes_text({}), "");
}

}  // namespace
}  // namespace deepinfer
