// What the custom calls here have in common: vectors, a product of a few rows, work shared by the threads of XLA's pool.

#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "xla/ffi/api/c_api.h"

// Columns of a panel, and how many of them, and of rows, have their sums in registers at a time.
#if defined(__AVX512F__)
enum { PANEL = 16, WIDTH = 16, ROWS = 8, PANELS = 3 };
#elif defined(__AVX__)
enum { PANEL = 16, WIDTH = 8, ROWS = 6, PANELS = 1 };
#elif defined(__aarch64__)
enum { PANEL = 16, WIDTH = 4, ROWS = 6, PANELS = 1 };
#else
enum { PANEL = 16, WIDTH = 4, ROWS = 3, PANELS = 1 };
#endif
enum { PARTS = PANEL / WIDTH };

#define INLINE static inline __attribute__((always_inline))

typedef float Floats __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef int32_t Integers __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint32_t Words __attribute__((vector_size(4 * WIDTH), aligned(4), may_alias));
typedef uint16_t Halves __attribute__((vector_size(2 * WIDTH), aligned(2), may_alias));

INLINE Floats load(const char* numbers, int64_t index, int is_bfloat16) {
  if (!is_bfloat16) return *(const Floats*)(numbers + 4 * index);
  return (Floats)(__builtin_convertvector(*(const Halves*)(numbers + 2 * index), Words) << 16);
}

INLINE float load_one(const char* numbers, int64_t index, int is_bfloat16) {
  if (!is_bfloat16) return ((const float*)numbers)[index];
  uint32_t word = (uint32_t)((const uint16_t*)numbers)[index] << 16;
  float result;
  memcpy(&result, &word, 4);
  return result;
}

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
  Floats sum[ROWS][PANELS][PARTS];
  for (int r = 0; r < rows; r++)
    for (int n = 0; n < panels; n++)
      for (int part = 0; part < PARTS; part++) sum[r][n][part] = (Floats){0};
  for (int64_t i = 0; i < t->inputs; i++)
    for (int n = 0; n < panels; n++)
      for (int part = 0; part < PARTS; part++) {
        int64_t at = t->input_stride * i + t->panel_stride * n + WIDTH * part;
        Floats w = load(t->weights, at, is_bfloat16);
        for (int r = 0; r < rows; r++) sum[r][n][part] += t->x[t->x_stride * r + i] * w;
      }
  for (int r = 0; r < rows; r++)
    for (int n = 0; n < panels; n++) {
      float* y = t->y + t->y_stride * r + PANEL * n;
      const float* sums = (const float*)sum[r][n];
      int64_t width = t->columns - PANEL * n < PANEL ? t->columns - PANEL * n : PANEL;
      for (int64_t c = 0; c < width; c++) y[c] = t->adds ? y[c] + sums[c] : sums[c];
    }
}

// `tile_of` for each number of rows, so that loops over them unroll.
#define CASE(number) \
  case number:       \
    return tile_of(t, number, panels, is_bfloat16);
INLINE void tile_of_some(const Tile* t, int rows, int panels, int is_bfloat16) {
  switch (rows) {
    CASE(1)
    CASE(2)
    CASE(3)
#if defined(__AVX__) || defined(__aarch64__)
    CASE(4)
    CASE(5)
    CASE(6)
#endif
#if defined(__AVX512F__)
    CASE(7)
    CASE(8)
#endif
  }
}
#define VARIANT(name, panels, is_bfloat16) \
  static __attribute__((noinline)) void name(const Tile* t, int rows) { tile_of_some(t, rows, panels, is_bfloat16); }
VARIANT(one_float, 1, 0)
VARIANT(all_float, PANELS, 0)
VARIANT(one_bfloat16, 1, 1)
VARIANT(all_bfloat16, PANELS, 1)

// A tile of up to PANELS panels, for any number of rows.
static inline void multiply_tile(Tile t, int64_t rows, int is_bfloat16) {
  int64_t panels = (t.columns + PANEL - 1) / PANEL;
  for (; rows > 0; rows -= ROWS, t.x += ROWS * t.x_stride, t.y += ROWS * t.y_stride) {
    int some = rows < ROWS ? (int)rows : ROWS;
    if (panels == PANELS) {
      (is_bfloat16 ? all_bfloat16 : all_float)(&t, some);
      continue;
    }
    for (int64_t n = 0; n < panels; n++) {
      Tile one = t;
      one.weights += (is_bfloat16 ? 2 : 4) * t.panel_stride * n;
      one.y += PANEL * n;
      one.columns -= PANEL * n;
      (is_bfloat16 ? one_bfloat16 : one_float)(&one, some);
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
