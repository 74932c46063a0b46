// Arithmetic without denormal numbers.

#pragma once

#if defined(__x86_64__)
#include <xmmintrin.h>
#endif

#include <cstdint>

namespace dien_fast {

// While it lives, arithmetic of this thread reads and writes zero in place of denormal numbers (in float32
// those below 1.2e-38), with which an Intel Xeon takes many times as long. Gates that have closed, and
// gradients far back in a history, are that small. Copies keep such numbers.
class FlushDenormals {
  public:
    FlushDenormals() : saved_(control()) { set_control(saved_ | kFlush); }
    ~FlushDenormals() { set_control(saved_); }
    FlushDenormals(const FlushDenormals&) = delete;
    FlushDenormals& operator=(const FlushDenormals&) = delete;

  private:
#if defined(__x86_64__)
    using Control = unsigned int;
    static constexpr Control kFlush = 0x8040;  // flush to zero, denormals are zeros
    static Control control() { return _mm_getcsr(); }
    static void set_control(Control value) { _mm_setcsr(value); }
#elif defined(__aarch64__)
    using Control = uint64_t;
    static constexpr Control kFlush = 1 << 24;  // FZ
    static Control control() {
        Control value;
        asm volatile("mrs %0, fpcr" : "=r"(value));
        return value;
    }
    static void set_control(Control value) { asm volatile("msr fpcr, %0" : : "r"(value)); }
#else
    using Control = int;
    static constexpr Control kFlush = 0;
    static Control control() { return 0; }
    static void set_control(Control) {}
#endif
    const Control saved_;
};

}  // namespace dien_fast
