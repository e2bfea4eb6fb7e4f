// What the custom calls here have in common: vectors, a product of a few rows, work shared by the threads of XLA's pool.

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

// Columns of a panel, rows at a time, and how many panels' sums there are registers for.
#if defined(__AVX512F__)
enum { PANEL = 16, WIDTH = 16, ROWS = 8, SUMS = 24 };
#elif defined(__AVX__)
enum { PANEL = 16, WIDTH = 8, ROWS = 6, SUMS = 6 };
#elif defined(__aarch64__)
enum { PANEL = 16, WIDTH = 4, ROWS = 6, SUMS = 6 };
#else
enum { PANEL = 16, WIDTH = 4, ROWS = 3, SUMS = 3 };
#endif
// FETCHED: bytes ahead.
enum { PARTS = PANEL / WIDTH, PANELS = SUMS / ROWS, MOST_PANELS = 4, FETCHED = 1 << 14 };

#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));

// Bytes of a weight.
INLINE int64_t size_of(int is_bfloat16) { return is_bfloat16 ? 2 : 4; }

INLINE Floats load(const char* numbers, int64_t index, int is_bfloat16) {
  if (!is_bfloat16) return *(const Floats*)(numbers + 4 * index);
  return (Floats)(__builtin_convertvector(*(const Halves*)(numbers + 2 * index), Words) << 16);
}

// The same, of arrays that are read in the order of memory: what comes next but a little is fetched.
INLINE Floats load_ahead(const char* numbers, int64_t index, int is_bfloat16) {
  __builtin_prefetch(numbers + size_of(is_bfloat16) * index + FETCHED, 0, 2);
  return load(numbers, index, is_bfloat16);
}

INLINE float load_one(const char* numbers, int64_t index, int is_bfloat16) {
  if (!is_bfloat16) return ((const float*)numbers)[index];
  uint32_t word = (uint32_t)((const uint16_t*)numbers)[index] << 16;
  float result;
  memcpy(&result, &word, 4);
  return result;
}

// How weights are read: `load`, or `load_ahead`.
#ifndef LOAD
#define LOAD load
#endif

// y = x W, or y += x W, for columns in panels of 16. Strides are in numbers.
typedef struct {
  const float* x;
  int64_t x_stride;  // From row to row.
  const char* weights;
  int64_t input_stride, panel_stride;
  float* y;
  int64_t y_stride, columns;  // Of the last panel, what is beyond is not written.
  int64_t inputs;
  int adds;
} Tile;

INLINE void tile_of(const Tile* t, int rows, int panels, int is_bfloat16) {
  Floats sum[SUMS * PARTS];
  for (int s = 0; s < rows * panels * PARTS; s++) sum[s] = (Floats){0};
  for (int64_t i = 0; i < t->inputs; i++)
    for (int n = 0; n < panels; n++)
      for (int part = 0; part < PARTS; part++) {
        int64_t at = t->input_stride * i + t->panel_stride * n + WIDTH * part;
        Floats w = LOAD(t->weights, at, is_bfloat16);
        for (int r = 0; r < rows; r++) sum[(r * panels + n) * PARTS + part] += t->x[t->x_stride * r + i] * w;
      }
  for (int r = 0; r < rows; r++)
    for (int n = 0; n < panels; n++) {
      float* y = t->y + t->y_stride * r + PANEL * n;
      const float* sums = (const float*)(sum + (r * panels + n) * PARTS);
      int64_t width = t->columns - PANEL * n < PANEL ? t->columns - PANEL * n : PANEL;
      for (int64_t c = 0; c < width; c++) y[c] = t->adds ? y[c] + sums[c] : sums[c];
    }
}

// `tile_of` with loops that unroll: one for each number of rows and panels whose sums there are registers for.
#define CASE(rows, panels)                                                                   \
  case 16 * panels + rows:                                                                   \
    if (rows <= ROWS && rows * panels <= SUMS) return tile_of(t, rows, panels, is_bfloat16); \
    break;
#define ROWS_OF(panels) \
  CASE(1, panels) CASE(2, panels) CASE(3, panels) CASE(4, panels) CASE(5, panels) CASE(6, panels) CASE(7, panels) CASE(8, panels)
INLINE void some_panels(const Tile* t, int rows, int panels, int is_bfloat16) {
  switch (16 * panels + rows) { ROWS_OF(1) ROWS_OF(2) ROWS_OF(3) ROWS_OF(4) }
}
static __attribute__((noinline)) void tile_float(const Tile* t, int rows, int panels) { some_panels(t, rows, panels, 0); }
static __attribute__((noinline)) void tile_bfloat16(const Tile* t, int rows, int panels) { some_panels(t, rows, panels, 1); }

// A tile of any number of rows and columns.
static inline void multiply_tile(Tile t, int64_t rows, int is_bfloat16) {
  for (; rows > 0; rows -= ROWS, t.x += ROWS * t.x_stride, t.y += ROWS * t.y_stride) {
    int some = rows < ROWS ? (int)rows : ROWS, most = SUMS / some < MOST_PANELS ? SUMS / some : MOST_PANELS;
    Tile next = t;
    while (next.columns > 0) {
      int64_t panels = (next.columns + PANEL - 1) / PANEL;
      if (panels > most) panels = most;
      (is_bfloat16 ? tile_bfloat16 : tile_float)(&next, some, (int)panels);
      next.weights += size_of(is_bfloat16) * t.panel_stride * panels;
      next.y += PANEL * panels;
      next.columns -= PANEL * panels;
    }
  }
}

// Parts of some work, 0 … number − 1, that threads take until none is left.
typedef struct Work {
  void (*part)(const void* task, int64_t number);
  const void* task;
  int64_t number;
  atomic_long next, done;
  atomic_int holders;  // Threads that may still read this.
} Work;

static void take_parts(Work* work) {
  int64_t number;
  while ((number = atomic_fetch_add(&work->next, 1)) < work->number) {
    work->part(work->task, number);
    atomic_fetch_add(&work->done, 1);
  }
}

static void let_go(Work* work) {
  if (atomic_fetch_sub(&work->holders, 1) == 1) free(work);
}

static void help(void* work) {
  take_parts(work);
  let_go(work);
}

static int failed(const XLA_FFI_Api* api, XLA_FFI_Error* error) {
  if (!error) return 0;
  XLA_FFI_Error_Destroy_Args args = {XLA_FFI_Error_Destroy_Args_STRUCT_SIZE, NULL, error};
  api->XLA_FFI_Error_Destroy(&args);
  return 1;
}

static XLA_FFI_Error* error_of(const XLA_FFI_CallFrame* frame, const char* message, XLA_FFI_Error_Code code) {
  XLA_FFI_Error_Create_Args args = {XLA_FFI_Error_Create_Args_STRUCT_SIZE, NULL, message, code};
  return frame->api->XLA_FFI_Error_Create(&args);
}

static XLA_FFI_Error* fail(const XLA_FFI_CallFrame* frame, const char* message) {
  return error_of(frame, message, XLA_FFI_Error_Code_INVALID_ARGUMENT);
}

static XLA_FFI_Error* fail_for_memory(const XLA_FFI_CallFrame* frame) {
  return error_of(frame, "There is no memory left.", XLA_FFI_Error_Code_RESOURCE_EXHAUSTED);
}

static int64_t number_of_threads(const XLA_FFI_CallFrame* frame) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args known = {
      XLA_FFI_ThreadPool_NumThreads_Args_STRUCT_SIZE, NULL, frame->ctx, &threads};
  return failed(frame->api, frame->api->XLA_FFI_ThreadPool_NumThreads(&known)) ? 1 : threads;
}

// Does all parts, with the help of other threads where there is `much` to do. One that comes late finds none left.
static XLA_FFI_Error* share(const XLA_FFI_CallFrame* frame, void (*part)(const void*, int64_t), const void* task,
                            int64_t number, int much) {
  Work* work = malloc(sizeof *work);
  if (!work) return fail_for_memory(frame);
  *work = (Work){part, task, number, 0, 0, 1};
  int64_t threads = much ? number_of_threads(frame) : 1;
  for (int64_t n = 1; n < threads && n < number; n++) {
    XLA_FFI_ThreadPool_Schedule_Args asked = {
        XLA_FFI_ThreadPool_Schedule_Args_STRUCT_SIZE, NULL, frame->ctx, help, work};
    atomic_fetch_add(&work->holders, 1);
    if (failed(frame->api, frame->api->XLA_FFI_ThreadPool_Schedule(&asked))) {
      atomic_fetch_sub(&work->holders, 1);
      break;
    }
  }
  take_parts(work);
  for (int tries = 0; atomic_load(&work->done) < number;) tries < 1000 ? (void)tries++ : (void)sched_yield();
  let_go(work);
  return NULL;
}

// XLA asks for the version of its interface before all else; whether that is what it asks.
static int tells_version(const XLA_FFI_CallFrame* frame) {
  XLA_FFI_Extension_Base* extension = frame->extension_start;
  if (!extension || extension->type != XLA_FFI_Extension_Metadata) return 0;
  XLA_FFI_Metadata* metadata = ((XLA_FFI_Metadata_Extension*)extension)->metadata;
  metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return 1;
}
