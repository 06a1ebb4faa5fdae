#include "server/secret_file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <system_error>

#include "base/check.h"
#include "base/log.h"

namespace deepinfer::server {

Result<void> check_readable(std::string_view setting, const std::string& path) {
  // A named pipe without a writer would block.
  const int file = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat info{};
  int reason = 0;
  if (file < 0 || fstat(file, &info) != 0)
    reason = errno;
  else if (S_ISDIR(info.st_mode))
    reason = EISDIR;
  if (file >= 0) ::close(file);
  if (reason == 0) return {};
  return make_error(ErrorCode::kConfig, "{}: cannot read {} ({})", setting, path,
                    std::generic_category().message(reason));
}

void warn_if_others_read(std::string_view setting, const std::string& path) {
  struct stat info{};
  if (stat(path.c_str(), &info) == 0 && (info.st_mode & S_IROTH) != 0)
    log::warn("{}: every user of this machine can read {}; chmod 600 {}", setting, path, path);
}

}  // namespace deepinfer::server
