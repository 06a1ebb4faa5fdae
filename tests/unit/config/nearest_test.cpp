#include "config/nearest.h"

#include <gtest/gtest.h>

#include <array>

namespace deepinfer {
namespace {

TEST(Nearest, CountsEdits) {
  EXPECT_EQ(edit_distance("", ""), 0);
  EXPECT_EQ(edit_distance("", "abc"), 3);
  EXPECT_EQ(edit_distance("kitten", "sitting"), 3);
  EXPECT_EQ(edit_distance("max_num_seqs", "max-num-SEQS"), 0);
  EXPECT_EQ(edit_distance("prot", "port"), 1);  // neighbours swapped
  EXPECT_EQ(edit_distance(std::string(1000, 'a'), std::string(1000, 'b')), 64);
}

TEST(Nearest, FindsTheClosestOrNothing) {
  const std::array<std::string_view, 3> names = {"port", "host", "max_num_seqs"};
  EXPECT_EQ(nearest("prot", names), "port");
  EXPECT_EQ(nearest("hosts", names), "host");
  EXPECT_EQ(nearest("max_num_sequences", names), "max_num_seqs");
  EXPECT_EQ(nearest("zzzzzzzz", names), "");
  EXPECT_EQ(nearest("", names), "");
}

}  // namespace
}  // namespace deepinfer
