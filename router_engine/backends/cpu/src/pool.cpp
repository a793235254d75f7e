// The pool of threads: how they are started, wait and are woken.
#include "pool.h"

#include <unistd.h>

#include <system_error>
#include <thread>

namespace mix {

Pool& Pool::shared() {
  // Never destroyed: its threads sleep in it when the process ends. A child of a fork has none.
  static std::mutex mutex;
  static Pool* pool = nullptr;
  static pid_t owner = 0;
  const std::lock_guard<std::mutex> lock(mutex);
  if (owner != getpid()) {
    pool = new Pool;
    owner = getpid();
  }
  return *pool;
}

void Pool::run(int threads, const std::function<void()>& work) {
  if (threads <= 1 || !busy_.try_lock()) return work();
  const std::lock_guard<std::mutex> lock(busy_, std::adopt_lock);
  start(threads - 1);
  work_ = &work;
  others_.store(threads - 1, std::memory_order_relaxed);
  gate_.store(OPEN, std::memory_order_release);
  call_.fetch_add(1, std::memory_order_release);
  call_.notify_all();
  work();
  uint32_t inside = gate_.fetch_and(~OPEN) & ~OPEN;
  while (inside > 0) {
    gate_.wait(inside, std::memory_order_acquire);
    inside = gate_.load(std::memory_order_acquire);
  }
}

void Pool::start(int others) {
  // A phase ends when its tasks do, whoever did them: with fewer threads than asked for, too.
  try {
    for (; started_ < others; started_++) std::thread(&Pool::serve, this, started_).detach();
  } catch (const std::system_error&) {
  }
}

void Pool::serve(int index) {
  for (uint32_t seen = 0;;) {
    call_.wait(seen, std::memory_order_acquire);
    seen = call_.load(std::memory_order_acquire);
    if (index >= others_.load(std::memory_order_relaxed)) continue;
    uint32_t gate = gate_.load(std::memory_order_acquire);
    while (gate & OPEN)
      if (gate_.compare_exchange_weak(gate, gate + 1, std::memory_order_acq_rel)) {
        (*work_)();
        leave();
        break;
      }
  }
}

void Pool::leave() {
  if (gate_.fetch_sub(1, std::memory_order_acq_rel) == 1) gate_.notify_all();
}

}  // namespace mix
