// One file from the hub into the cache: several connections fetch pieces, which are written in order.
#pragma once

#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "deepinfer/result.h"
#include "hub/blob_writer.h"
#include "hub/hub_client.h"
#include "hub/progress.h"

namespace deepinfer::hub {

class Download {
 public:
  // All of them outlive it. The caller holds the blob's lock.
  Download(HubClient& hub, FileSource& source, BlobWriter& writer, Progress& progress)
      : hub_(hub), source_(source), writer_(writer), progress_(progress) {}

  // Returns when the writer has the whole file; one thread for each client. After an error the writer has the
  // file's beginning.
  Result<void> run(std::vector<HttpClient*> clients);

 private:
  struct Piece {
    uint64_t end = 0;
    uint64_t position = 0;  // of the next byte that comes
    std::string waiting;    // came, but an earlier piece is not complete
  };
  // Tries since there was progress.
  struct Tries {
    int count = 1;
    uint64_t counted = 0;  // where the file was then

    void at(uint64_t position);
  };

  void work(HttpClient& http);
  std::optional<uint64_t> next_piece();  // its first byte
  void fetch_piece(HttpClient& http, uint64_t piece);
  bool next_try(uint64_t piece, Fetched fetched, Tries& tries);
  bool take(uint64_t piece, std::string_view bytes);
  bool write_ready();  // with mutex_ held
  Result<void> run_whole(HttpClient& http);
  bool ended() const { return error_ || range_ignored_; }
  void fail(Error error);  // with mutex_ held
  Error reason(const Fetched& fetched, uint64_t position) const;

  HubClient& hub_;
  FileSource& source_;
  BlobWriter& writer_;
  Progress& progress_;

  std::mutex mutex_;
  std::condition_variable changed_;
  std::map<uint64_t, Piece> pieces_;  // that are not written whole, by their first byte
  uint64_t next_ = 0;                 // first byte of the next piece
  size_t most_pieces_ = 0;
  std::optional<Error> error_;
  bool range_ignored_ = false;
};

}  // namespace deepinfer::hub
