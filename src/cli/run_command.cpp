#include "cli/run_command.h"

#include <histedit.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <clocale>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <ctime>
#include <cwchar>
#include <filesystem>
#include <iostream>
#include <iterator>
#include <limits>

#include "base/check.h"
#include "base/paths.h"
#include "base/queue.h"
#include "cli/exit_code.h"
#include "engine/llm.h"
#include "engine/profiling.h"
#include "text/text_stream.h"

namespace deepinfer {
namespace {

namespace json = boost::json;

// What a signal handler can reach: Ctrl-C stops the answer, not the program, and wakes who waits for a key.
std::atomic<bool> interrupted{false};
std::atomic<int> wake_fd{-1};  // an eventfd, while lines are read
static_assert(std::atomic<bool>::is_always_lock_free && std::atomic<int>::is_always_lock_free);

void on_interrupt(int) {
  interrupted = true;
  const uint64_t one = 1;
  if (wake_fd >= 0 && write(wake_fd, &one, sizeof(one)) < 0) return;
}

// One character for the line editor, or -1 after Ctrl-C. The signal may reach any thread at any moment, so
// the wait is for the descriptor that its handler writes to, not for the signal.
int read_character(EditLine*, wchar_t* out) {
  std::mbstate_t state{};
  for (;;) {
    pollfd inputs[] = {{STDIN_FILENO, POLLIN, 0}, {wake_fd, POLLIN, 0}};
    if (poll(inputs, 2, -1) < 0) continue;  // a signal
    uint64_t count;
    if (inputs[1].revents != 0 && read(wake_fd, &count, sizeof(count)) > 0) return -1;
    char byte;
    const ssize_t n = read(STDIN_FILENO, &byte, 1);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return static_cast<int>(n);
    const size_t length = std::mbrtowc(out, &byte, 1, &state);
    if (length <= 1) return 1;
    if (length == static_cast<size_t>(-1)) state = {};  // not UTF-8: dropped
  }
}

struct News {
  std::vector<OutputToken> tokens;
  FinishReason finish = FinishReason::kNone;
  std::string error;
};

std::string special(const Tokenizer& t, const std::vector<int32_t>& ids) {
  return ids.empty() ? std::string() : std::string(t.bytes(ids[0]));
}

class Chat {
 public:
  Chat(Llm& llm, const Config& config, const RunOptions& options) : llm_(llm), options_(options) {
    sampling_ = default_sampling(config, llm.generation);
    sampling_.max_tokens = config.sampling.max_tokens.value_or(std::numeric_limits<int>::max());
    reset();
  }

  void reset() {
    messages_.clear();
    if (!options_.system.empty()) add("system", options_.system);
  }

  bool templated() const { return !options_.raw && llm_.chat_template != nullptr; }

  // Prints the answer as it grows. False: there was none, and the message is taken back.
  Result<void> ask(const std::string& text);

 private:
  void add(const char* role, const std::string& content) {
    messages_.push_back(json::object{{"role", role}, {"content", content}});
  }
  Result<std::vector<int32_t>> encode(const std::string& text);
  Result<std::string> generate(std::vector<int32_t> prompt);

  Llm& llm_;
  const RunOptions& options_;
  SamplingParams sampling_;
  json::array messages_;
};

Result<std::vector<int32_t>> Chat::encode(const std::string& text) {
  const Tokenizer& t = *llm_.tokenizer;
  std::vector<int32_t> ids;
  if (!templated()) {
    if (t.add_bos() && t.bos()) ids.push_back(*t.bos());
    const std::vector<int32_t> rest = t.encode(text);
    ids.insert(ids.end(), rest.begin(), rest.end());
    return ids;
  }
  add("user", text);
  TemplateInput input{.messages = messages_, .now = std::time(nullptr)};
  if (t.bos()) input.bos_token = t.bytes(*t.bos());
  input.eos_token = special(t, t.end_ids());
  DI_ASSIGN(const RenderedPrompt prompt, llm_.chat_template->render(input));
  return t.encode(prompt.text, prompt.trusted);
}

Result<std::string> Chat::generate(std::vector<int32_t> prompt) {
  SamplingParams sampling = sampling_;
  const int room = llm_.max_model_len - static_cast<int>(prompt.size());
  sampling.max_tokens = std::min(sampling_.max_tokens, room);
  if (room < 1)
    return make_error(ErrorCode::kContextLength,
                      "the conversation has {} tokens, the context holds {}: /reset starts anew",
                      prompt.size(), llm_.max_model_len);
  Queue<News> queue;
  DI_ASSIGN(const uint64_t id, llm_.engine->submit({.prompt = std::move(prompt), .sampling = sampling},
                                                   [&queue](const OutputEvent& e) {
                                                     queue.push({{e.tokens.begin(), e.tokens.end()},
                                                                 e.finish,
                                                                 e.error != nullptr ? e.error->message : ""});
                                                   }));
  TextStream stream(*llm_.tokenizer, {});
  std::string answer;
  auto print = [&answer](const std::string& text) {
    answer += text;
    std::fwrite(text.data(), 1, text.size(), stdout);
    std::fflush(stdout);
  };
  for (bool cancelled = false;;) {
    const std::optional<News> news = queue.pop_for(std::chrono::milliseconds(50));
    if (interrupted && !cancelled) {
      cancelled = true;
      llm_.engine->cancel(id);
    }
    if (!news) continue;
    for (const OutputToken& token : news->tokens) print(stream.push(token.id).text);
    if (news->finish == FinishReason::kNone) continue;
    print(stream.finish().text);
    if (news->finish == FinishReason::kError) return make_error(ErrorCode::kInternal, "{}", news->error);
    return answer;
  }
}

Result<void> Chat::ask(const std::string& text) {
  interrupted = false;
  const size_t before = messages_.size();
  Result<std::vector<int32_t>> ids = encode(text);
  Result<std::string> answer = ids ? generate(std::move(*ids)) : Result<std::string>(std::move(ids).error());
  std::fputs("\n", stdout);
  if (!answer) {
    messages_.resize(before);
    return std::move(answer).error();
  }
  if (templated()) add("assistant", *answer);
  return {};
}

// Lines from the terminal, with editing and a history that lasts.
class Lines {
 public:
  Lines() : edit_(el_init("deepinfer", stdin, stdout, stderr)), history_(history_init()) {
    wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    HistEvent event;
    history(history_, &event, H_SETSIZE, 1000);
    el_set(edit_, EL_PROMPT, +[](EditLine*) { return const_cast<char*>(">>> "); });
    el_set(edit_, EL_EDITOR, "emacs");
    el_set(edit_, EL_SIGNAL, 0);
    el_set(edit_, EL_GETCFN, read_character);
    el_set(edit_, EL_HIST, history, history_);
    std::error_code ignored;  // no history is no reason not to chat
    std::filesystem::create_directories(cache_dir(), ignored);
    file_ = (cache_dir() / "history").string();
    history(history_, &event, H_LOAD, file_.c_str());
  }
  ~Lines() {
    close(wake_fd.exchange(-1));
    HistEvent event;
    history(history_, &event, H_SAVE, file_.c_str());
    history_end(history_);
    el_end(edit_);
  }
  Lines(const Lines&) = delete;

  // Nothing at the end of input (Ctrl-D). Ctrl-C gives up the line.
  std::optional<std::string> next() {
    uint64_t old;  // of a Ctrl-C that stopped the last answer
    while (read(wake_fd, &old, sizeof(old)) > 0) interrupted = false;
    int count = 0;
    const char* line = el_gets(edit_, &count);
    if (line == nullptr || count <= 0) {
      if (!interrupted) return std::nullopt;
      interrupted = false;
      std::fputs("\n", stdout);
      return "";
    }
    std::string text(line, count);
    while (!text.empty() && (text.back() == '\n' || text.back() == '\r')) text.pop_back();
    HistEvent event;
    if (!text.empty()) history(history_, &event, H_ENTER, line);
    return text;
  }

 private:
  EditLine* edit_;
  History* history_;
  std::string file_;
};

int interactive(Chat& chat, const Llm& llm) {
  std::printf("%s. /reset starts anew, /exit or Ctrl-D ends, Ctrl-C stops an answer.\n",
              llm.names[0].c_str());
  struct sigaction action{};
  action.sa_handler = on_interrupt;
  sigaction(SIGINT, &action, nullptr);
  Lines lines;
  while (const std::optional<std::string> line = lines.next()) {
    if (line->empty()) continue;
    if (*line == "/exit" || *line == "/bye" || *line == "/quit") break;
    if (*line == "/reset") {
      chat.reset();
      continue;
    }
    if (const Result<void> r = chat.ask(*line); !r) std::fprintf(stderr, "%s\n", r.error().message.c_str());
  }
  return 0;
}

}  // namespace

int run_command(const Config& config, const RunOptions& options) {
  if (std::setlocale(LC_CTYPE, "") == nullptr || MB_CUR_MAX == 1) std::setlocale(LC_CTYPE, "C.UTF-8");
  Result<std::unique_ptr<Llm>> llm = Llm::load(config);
  if (!llm) return report(llm.error());
  Chat chat(**llm, config, options);
  if (options.prompt.empty() && isatty(STDIN_FILENO)) {
    const int code = interactive(chat, **llm);
    finish_profile((*llm)->profiler.get(), config);
    return code;
  }
  std::string prompt = options.prompt;
  if (prompt.empty()) prompt.assign(std::istreambuf_iterator<char>(std::cin), {});
  struct sigaction action{};
  action.sa_handler = on_interrupt;
  action.sa_flags = SA_RESETHAND;  // a second Ctrl-C ends the program
  sigaction(SIGINT, &action, nullptr);
  const Result<void> r = chat.ask(prompt);
  finish_profile((*llm)->profiler.get(), config);
  return r ? 0 : report(r.error());
}

}  // namespace deepinfer
