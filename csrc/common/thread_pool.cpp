#include "common/thread_pool.h"

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>

namespace paw {
namespace {

struct Job {
  void (*task)(void*, int64_t);
  void* context;
  int64_t count;
  std::atomic<int64_t> next{0};

  void run() {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(context, i);
  }
};

thread_local bool t_inside = false;

class Pool {
 public:
  void run(Job& job, int helpers) {
    std::lock_guard<std::mutex> one_job(run_mutex_);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      while (size_ < helpers) {
        try {
          std::thread(&Pool::work, this).detach();
        } catch (const std::system_error&) {
          break;  // no more threads available: continue with the existing ones
        }
        ++size_;
      }
      job_ = &job;
      seats_ = std::min(helpers, size_);
    }
    wake_.notify_all();
    t_inside = true;
    job.run();
    t_inside = false;
    std::unique_lock<std::mutex> lock(mutex_);
    seats_ = 0;  // helpers that have not started yet would find no work
    done_.wait(lock, [&] { return active_ == 0; });
    job_ = nullptr;
  }

 private:
  void work() {
    t_inside = true;
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wake_.wait(lock, [&] { return seats_ > 0; });
      --seats_;
      ++active_;
      Job* job = job_;
      lock.unlock();
      job->run();
      lock.lock();
      if (--active_ == 0) done_.notify_one();
    }
  }

  std::mutex run_mutex_;
  std::mutex mutex_;
  std::condition_variable wake_, done_;
  Job* job_ = nullptr;
  int size_ = 0, seats_ = 0, active_ = 0;
};

// Never destroyed: its threads sleep until the process ends. A forked child has no copies of them and gets a new pool.
Pool& pool() {
  static std::mutex mutex;
  static Pool* instance = nullptr;
  static pid_t owner = 0;
  std::lock_guard<std::mutex> lock(mutex);
  const pid_t pid = getpid();
  if (instance == nullptr || owner != pid) {
    instance = new Pool;
    owner = pid;
  }
  return *instance;
}

}  // namespace

void parallel_for(int64_t count, int threads, void (*task)(void*, int64_t), void* context) {
  const int64_t useful = std::min<int64_t>(count, std::max(threads, 1));
  if (useful <= 1 || t_inside) {
    for (int64_t i = 0; i < count; ++i) task(context, i);
    return;
  }
  Job job{task, context, count};
  pool().run(job, static_cast<int>(useful) - 1);
}

}  // namespace paw
