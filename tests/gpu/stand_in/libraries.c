// cuDNN, cuBLAS and cuRAND: what would compute is logged with its types and shapes. Descriptors stay cuDNN's own.
#include <dlfcn.h>

#include "stand_in.h"

typedef const void* Tensor;
typedef const void* Filter;
typedef const void* Convolution;
typedef struct { Stream stream; } *Handle;
typedef const void* Data;
typedef struct { int algorithm, status; float time; size_t memory; int determinism, math, reserved[3]; } Choice;
typedef char Text[96];

static int create(Handle* handle) { *handle = calloc(1, sizeof **handle); return 0; }
static int destroy(Handle handle) { free(handle); return 0; }

static const char* type_name(int type) {  // cudnnDataType_t
  return type == 0 ? "float" : type == 1 ? "double" : type == 2 ? "half" : "other";
}

// cuDNN is loaded long after this library: its functions are looked up when they are needed.
#define CUDNN(name, ...) ((int (*)(__VA_ARGS__))dlsym(RTLD_DEFAULT, "cudnn" #name))

static char* shape_text(Text text, int type, const int* sizes, int channels_last) {
  const char* order = channels_last ? "NHWC" : "NCHW";
  sprintf(text, "%s[%d,%d,%d,%d]%s", type_name(type), sizes[0], sizes[1], sizes[2], sizes[3], order);
  return text;
}

static char* tensor_text(Text text, Tensor tensor) {
  int type, count, sizes[8] = {0}, strides[8] = {0};
  CUDNN(GetTensorNdDescriptor, Tensor, int, int*, int*, int*, int*)(tensor, 8, &type, &count, sizes, strides);
  return shape_text(text, type, sizes, strides[1] == 1 && sizes[1] > 1);
}

static char* filter_text(Text text, Filter filter) {
  int type, format, count, sizes[8] = {0};
  CUDNN(GetFilterNdDescriptor, Filter, int, int*, int*, int*, int*)(filter, 8, &type, &format, &count, sizes);
  return shape_text(text, type, sizes, format == 1);
}

static int math_of(Convolution convolution) {
  int math = 0;
  CUDNN(GetConvolutionMathType, Convolution, int*)(convolution, &math);
  return math;
}

static int convolve(const char* name, const char* a, const char* b, const char* c, Convolution convolution) {
  static const char* maths[] = {"tf32", "tensor-cores", "tensor-cores-with-conversion", "fma"};
  int count, padding[8], strides[8], dilations[8], mode, computed_in;
  CUDNN(GetConvolutionNdDescriptor, Convolution, int, int*, int*, int*, int*, int*, int*)
  (convolution, 3, &count, padding, strides, dilations, &mode, &computed_in);
  const char* math = maths[math_of(convolution) & 3];
  event("cudnn", name, 0, "%s %s %s computed-in %s math %s", a, b, c, type_name(computed_in), math);
  if (setting("GPU_STAND_IN_SLOW_US")) usleep(setting("GPU_STAND_IN_SLOW_US"));
  return 0;
}

// ---- cuDNN
int cudnnCreate(Handle* handle) { return create(handle); }
int cudnnDestroy(Handle handle) { return destroy(handle); }
int cudnnSetStream(Handle handle, Stream stream) { handle->stream = stream; return 0; }
int cudnnGetStream(Handle handle, Stream* stream) { *stream = handle->stream; return 0; }

#define WORKSPACE ((size_t)1 << 20)
#define DETERMINISTIC 1
static int choose(Convolution convolution, int* count, Choice* choices) {
  // Algorithm 1 exists in all three directions.
  *choices = (Choice){.algorithm = 1, .time = 1, .memory = WORKSPACE, .determinism = DETERMINISTIC};
  choices->math = math_of(convolution);
  *count = 1;
  return 0;
}
// The three directions differ in which of the arguments are images and which weights, and that does not matter here.
#define CHOICES(direction) \
  int cudnnGetConvolution##direction##AlgorithmMaxCount(Handle h, int* n) { *n = 8; return 0; } \
  int cudnnGetConvolution##direction##Algorithm_v7( \
      Handle h, Data a, Data b, Convolution c, Data d, int asked, int* n, Choice* choices) { \
    return choose(c, n, choices); \
  } \
  int cudnnFindConvolution##direction##AlgorithmEx( \
      Handle h, Data a, Data as, Data b, Data bs, Convolution c, Data d, Data ds, int asked, int* n, Choice* to) { \
    return choose(c, n, to); \
  } \
  int cudnnGetConvolution##direction##WorkspaceSize( \
      Handle h, Data a, Data b, Convolution c, Data d, int algorithm, size_t* size) { \
    *size = WORKSPACE; \
    return 0; \
  }
CHOICES(Forward)
CHOICES(BackwardData)
CHOICES(BackwardFilter)

int cudnnConvolutionForward(
    Handle h, Data alpha, Tensor x, Data xs, Filter w, Data ws, Convolution c, int algorithm, Data space,
    size_t size, Data beta, Tensor y, Data ys) {
  Text a, b, d;
  return convolve("forward", tensor_text(a, x), filter_text(b, w), tensor_text(d, y), c);
}
int cudnnConvolutionBackwardData(
    Handle h, Data alpha, Filter w, Data ws, Tensor dy, Data dys, Convolution c, int algorithm, Data space,
    size_t size, Data beta, Tensor dx, Data dxs) {
  Text a, b, d;
  return convolve("backward-data", tensor_text(a, dy), filter_text(b, w), tensor_text(d, dx), c);
}
int cudnnConvolutionBackwardFilter(
    Handle h, Data alpha, Tensor x, Data xs, Tensor dy, Data dys, Convolution c, int algorithm, Data space,
    size_t size, Data beta, Filter dw, Data dws) {
  Text a, b, d;
  return convolve("backward-filter", tensor_text(a, x), tensor_text(b, dy), filter_text(d, dw), c);
}
static int tell(const char* name, Tensor from, Tensor to) {
  Text a, b;
  event("cudnn", name, 0, "%s %s", tensor_text(a, from), tensor_text(b, to));
  return 0;
}
int cudnnConvolutionBackwardBias(Handle h, Data alpha, Tensor dy, Data dys, Data beta, Tensor db, Data dbs) {
  return tell("backward-bias", dy, db);
}
int cudnnPoolingForward(Handle h, Data pooling, Data alpha, Tensor x, Data xs, Data beta, Tensor y, Data ys) {
  return tell("pool", x, y);
}
int cudnnPoolingBackward(
    Handle h, Data pooling, Data alpha, Tensor y, Data ys, Tensor dy, Data dys, Tensor x, Data xs, Data beta,
    Tensor dx, Data dxs) {
  return tell("pool-backward", dy, dx);
}
int cudnnAddTensor(Handle h, Data alpha, Tensor a, Data as, Data beta, Tensor c, Data cs) { return tell("add", a, c); }

// ---- cuBLAS
int cublasCreate_v2(Handle* handle) { return create(handle); }
int cublasDestroy_v2(Handle handle) { return destroy(handle); }
int cublasSetStream_v2(Handle handle, Stream stream) { handle->stream = stream; return 0; }
int cublasSetWorkspace_v2(Handle handle, void* space, size_t size) { return 0; }
int cublasGetVersion_v2(Handle handle, int* version) { *version = 111103; return 0; }
int cublasSetMathMode(Handle handle, int mode) { return 0; }
int cublasGetMathMode(Handle handle, int* mode) { *mode = 0; return 0; }
int cublasLtCreate(Handle* handle) { return create(handle); }
int cublasLtDestroy(Handle handle) { return destroy(handle); }
int cublasGemmEx(
    Handle h, int ta, int tb, int m, int n, int k, Data alpha, Data a, int a_type, int lda, Data b, int b_type,
    int ldb, Data beta, void* c, int c_type, int ldc, int computed_in, int algorithm) {
  event("cublas", "gemm", 0, "%dx%dx%d types %d %d %d", m, n, k, a_type, b_type, c_type);
  return 0;
}

// ---- cuRAND
int curandCreateGenerator(Handle* generator, int kind) { return create(generator); }
int curandDestroyGenerator(Handle generator) { return destroy(generator); }
int curandSetPseudoRandomGeneratorSeed(Handle generator, unsigned long long seed) { return 0; }
int curandSetStream(Handle generator, Stream stream) { return 0; }
