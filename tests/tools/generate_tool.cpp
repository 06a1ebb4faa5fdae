// Generates with a model folder or file, token ids in and out, for tests that compare with other
// implementations:
//   generate_tool MODEL [threads]     a line in:  {"prompt": [ids], "max_tokens": 64}
//                                     a line out: {"tokens": [ids]}
// Greedy, ends ignored, KV cache in F32.
#include <boost/json.hpp>
#include <cstdlib>
#include <iostream>

#include "support/cpu_engine.h"

namespace {

using namespace deepinfer;
namespace json = boost::json;

int run(const char* model, int threads) {
  const auto engine = make_cpu_engine(model, {.threads = threads,
                                              .runner = {.max_num_seqs = 8,
                                                         .max_num_batched_tokens = 512,
                                                         .max_model_len = 1024,
                                                         .num_blocks = 64,
                                                         .kv_dtype = DType::kF32},
                                              .engine = {.max_num_batched_tokens = 512}});
  if (!engine) {
    std::cerr << engine.error().message << "\n";
    return 3;
  }
  for (std::string line; std::getline(std::cin, line);) {
    const json::value in = json::parse(line);
    EngineRequest request{.prompt = json::value_to<std::vector<int32_t>>(in.at("prompt"))};
    request.sampling = {
        .temperature = 0, .max_tokens = json::value_to<int>(in.at("max_tokens")), .ignore_eos = true};
    const Answer answer = run_all(**engine, {request})[0];
    json::array tokens;
    for (const OutputToken& t : answer.tokens) tokens.push_back(t.id);
    std::cout << json::serialize(json::object{{"tokens", tokens}, {"error", answer.error}}) << std::endl;
  }
  return 0;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 2) {
    std::cerr << "usage: generate_tool MODEL [threads]\n";
    return 2;
  }
  return run(argv[1], argc > 2 ? std::atoi(argv[2]) : 2);
}
