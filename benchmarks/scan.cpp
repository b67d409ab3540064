// The yardstick of the CPU kernels: a selective scan as one writes it by hand in C++.
//
// Channels are the vector lanes. Time is cut into chunks whose step sizes, inputs and sums stay
// in cache while blocks of states pass over them with their state in registers. It serves what
// the benchmark asks for and no more: float32, forward, 16 states, whole vectors of channels,
// D, z and softplus always there.
//
// Layout: (batch, length, channels or states), contiguous.

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <thread>
#include <vector>

namespace {

#if defined(__AVX512F__)
constexpr int kLanes = 16, kBlock = 8;
#elif defined(__AVX__)
constexpr int kLanes = 8, kBlock = 4;
#else
constexpr int kLanes = 4, kBlock = 4;
#endif
constexpr int kStates = 16, kChunk = 64;

typedef float Row __attribute__((vector_size(kLanes * sizeof(float))));
typedef int32_t Bits __attribute__((vector_size(kLanes * sizeof(float))));

inline Row load(const float* from) {
  Row row;
  std::memcpy(&row, from, sizeof row);
  return row;
}

inline void store(float* to, Row row) { std::memcpy(to, &row, sizeof row); }

inline Row fill(float value) { return Row{} + value; }

inline Row larger(Row a, Row b) { return a > b ? a : b; }

// 2^x for x from -126 to 127. 2^f = 1 + f q(f) for f from -1/2 to 1/2 is exact at 0: an error of
// the decay there would grow with the memory of the scan.
inline Row exp2(Row x) {
  const Row magic = fill(12582912.0f);  // leaves the rounded integer in the low bits
  x = larger(x, fill(-126.0f));
  const Row shifted = x + magic;
  const Row f = x - (shifted - magic);
  Row q = fill(1.33813025e-3f);
  q = q * f + 9.66636852e-3f;
  q = q * f + 5.55038101e-2f;
  q = q * f + 2.40223490e-1f;
  q = q * f + 6.93147181e-1f;
  return (Row)((Bits)(q * f + 1.0f) + ((Bits)shifted << 23));
}

constexpr float kLog2E = 1.44269504f;

inline Row softplus(Row x) {
  const Row positive = larger(x, Row{});
  const Row e = exp2((x - positive - positive) * kLog2E);
  // log(1 + e) = 2 artanh(e / (2 + e))
  const Row s = e / (e + 2.0f), s2 = s * s;
  Row series = fill(2.0f / 15);
  for (int k : {13, 11, 9, 7, 5, 3, 1}) series = series * s2 + 2.0f / k;
  return positive + s * series;
}

inline Row silu(Row x) { return x / (1.0f + exp2(x * -kLog2E)); }

struct Problem {
  const float *u, *delta, *A, *B, *C, *D, *z;
  float* out;
  int64_t batch, dim, length;
};

void scan_tile(const Problem& p, int64_t batch, int64_t channel) {
  alignas(64) Row a[kStates], h[kStates] = {}, steps[kChunk], inputs[kChunk], sums[kChunk];
  for (int n = 0; n < kStates; ++n)
    for (int lane = 0; lane < kLanes; ++lane)
      a[n][lane] = p.A[(channel + lane) * kStates + n] * kLog2E;
  const Row skip = load(p.D + channel);
  for (int64_t start = 0; start < p.length; start += kChunk) {
    const int count = p.length - start < kChunk ? int(p.length - start) : kChunk;
    const int64_t row = batch * p.length + start, first = row * p.dim + channel;
    for (int i = 0; i < count; ++i) {
      const Row u = load(p.u + first + i * p.dim);
      steps[i] = softplus(load(p.delta + first + i * p.dim));
      inputs[i] = steps[i] * u;
      sums[i] = skip * u;
    }
    for (int n = 0; n < kStates; n += kBlock) {
      Row block[kBlock];
      for (int k = 0; k < kBlock; ++k) block[k] = h[n + k];
      const float *b = p.B + row * kStates + n, *c = p.C + row * kStates + n;
      for (int i = 0; i < count; ++i, b += kStates, c += kStates) {
        Row y = sums[i];
#pragma GCC unroll 16
        for (int k = 0; k < kBlock; ++k) {
          block[k] = exp2(steps[i] * a[n + k]) * block[k] + inputs[i] * b[k];
          y += block[k] * c[k];
        }
        sums[i] = y;
      }
      for (int k = 0; k < kBlock; ++k) h[n + k] = block[k];
    }
    for (int i = 0; i < count; ++i)
      store(p.out + first + i * p.dim, sums[i] * silu(load(p.z + first + i * p.dim)));
  }
}

}  // namespace

extern "C" int lanes() { return kLanes; }

extern "C" void scan(const float* u, const float* delta, const float* A, const float* B,
                     const float* C, const float* D, const float* z, float* out, int64_t batch,
                     int64_t dim, int64_t length, int64_t threads) {
  const Problem problem{u, delta, A, B, C, D, z, out, batch, dim, length};
  const int64_t tiles = dim / kLanes, items = batch * tiles;
  const auto work = [&](int64_t worker) {
    for (int64_t i = items * worker / threads; i < items * (worker + 1) / threads; ++i)
      scan_tile(problem, i / tiles, i % tiles * kLanes);
  };
  std::vector<std::thread> others;
  for (int64_t worker = 1; worker < threads; ++worker) others.emplace_back(work, worker);
  work(0);
  for (auto& other : others) other.join();
}
