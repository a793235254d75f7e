// Threads that wait for work, asleep.
//
// They are the library's own, so that their number, and how they wait, do not depend on an OpenMP
// runtime that other libraries share.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <mutex>

namespace mix {

class Pool {
 public:
  // That of this process, also after a fork.
  static Pool& shared();

  // Calls work() on this thread and, as soon as they are awake, on up to `threads` - 1 others.
  // Returns when it has returned on this thread and on every other that had begun: one that the
  // system has not let run by then is not waited for. While another caller has the threads, work
  // runs on this one alone.
  void run(int threads, const std::function<void()>& work);

 private:
  static constexpr uint32_t OPEN = 1u << 31;  // of gate_, beside the number of threads inside

  void serve(int index);
  void start(int others);
  void leave();

  std::mutex busy_;
  int started_ = 0;
  const std::function<void()>* work_ = nullptr;
  std::atomic<int> others_{0};
  alignas(64) std::atomic<uint32_t> call_{0};
  alignas(64) std::atomic<uint32_t> gate_{0};
};

}  // namespace mix
