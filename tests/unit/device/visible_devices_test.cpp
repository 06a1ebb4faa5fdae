#include "device/visible_devices.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace deepinfer {
namespace {

const std::vector<std::string> kThree = {"GPU-aaaa-1", "GPU-aabb-2", "GPU-cccc-3"};

std::vector<int> indices(std::string_view variable) {
  std::vector<int> out;
  for (const VisibleDevice& d : visible_devices(variable, kThree).devices) out.push_back(d.index);
  return out;
}

TEST(VisibleDevices, Forms) {
  using List = std::vector<int>;
  EXPECT_EQ(indices("0"), List({0}));
  EXPECT_EQ(indices("2,0"), List({2, 0}));
  EXPECT_EQ(indices(" 2 , 0 "), List({2, 0}));
  EXPECT_EQ(indices("GPU-cccc-3,0"), List({2, 0}));
  EXPECT_EQ(indices("GPU-aab"), List({1}));
  EXPECT_EQ(indices("GPU-aa"), List());    // names two
  EXPECT_EQ(indices("0,5,1"), List({0}));  // the rest is ignored
  EXPECT_EQ(indices("0,-1,1"), List({0}));
  EXPECT_EQ(indices("-1"), List());
  EXPECT_EQ(indices("none"), List());
  EXPECT_EQ(indices("1,1"), List());
  EXPECT_EQ(indices("1,GPU-aabb-2"), List());
  EXPECT_EQ(indices("0x1"), List());
  EXPECT_EQ(indices("99999999999999999999"), List());
  EXPECT_EQ(indices("0,"), List({0}));
}

TEST(VisibleDevices, SaysWhatHidesTheRest) {
  EXPECT_EQ(visible_devices("0,1", kThree).message, "");
  EXPECT_THAT(visible_devices(" ", kThree).message, testing::HasSubstr("empty"));
  EXPECT_THAT(visible_devices("0,5,1", kThree).message, testing::HasSubstr("\"5\""));
  EXPECT_THAT(visible_devices("1,1", kThree).message, testing::HasSubstr("twice"));
}

TEST(VisibleDevices, MigDevicesGoByTheirName) {
  const VisibleDevices v = visible_devices("MIG-a/1/0,1", kThree);
  ASSERT_EQ(v.devices.size(), 2u);
  EXPECT_EQ(v.devices[0].mig_uuid, "MIG-a/1/0");
  EXPECT_EQ(v.devices[0].index, -1);
  EXPECT_EQ(v.devices[1].index, 1);
}

}  // namespace
}  // namespace deepinfer
