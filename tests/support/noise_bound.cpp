#include "support/noise_bound.h"

#include <boost/math/distributions/fisher_f.hpp>
#include <cmath>

namespace deepinfer::test {
namespace {

constexpr double kChance = 1e-3;

}  // namespace

double NoiseBound::most(double count) const {
  const boost::math::fisher_f ratio(directions, seeds * directions);
  return std::sqrt(boost::math::quantile(boost::math::complement(ratio, kChance / count)));
}

double NoiseBound::least(double count) const {
  const boost::math::fisher_f ratio(directions, seeds * directions);
  return std::sqrt(boost::math::quantile(ratio, kChance / count));
}

}  // namespace deepinfer::test
