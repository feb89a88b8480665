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

static char* tensor_text(Text text, Tensor tensor) {
  int type, count, sizes[8] = {0}, strides[8] = {0};
  CUDNN(GetTensorNdDescriptor, Tensor, int, int*, int*, int*, int*)(tensor, 8, &type, &count, sizes, strides);
  const char* order = strides[1] == 1 && sizes[1] > 1 ? "NHWC" : "NCHW";
  sprintf(text, "%s[%d,%d,%d,%d]%s", type_name(type), sizes[0], sizes[1], sizes[2], sizes[3], order);
  return text;
}

static char* filter_text(Text text, Filter filter) {
  int type, format, count, sizes[8] = {0};
  CUDNN(GetFilterNdDescriptor, Filter, int, int*, int*, int*, int*)(filter, 8, &type, &format, &count, sizes);
  const char* order = format == 1 ? "NHWC" : "NCHW";
  sprintf(text, "%s[%d,%d,%d,%d]%s", type_name(type), sizes[0], sizes[1], sizes[2], sizes[3], order);
  return text;
}

static int math_of(Convolution convolution) {
  int math = 0;
  CUDNN(GetConvolutionMathType, Convolution, int*)(convolution, &math);
  return math;
}

static void convolve(const char* name, const char* a, const char* b, const char* c, Convolution convolution) {
  static const char* maths[] = {"tf32", "tensor-cores", "tensor-cores-with-conversion", "fma"};
  int count, padding[8], strides[8], dilations[8], mode, computed_in;
  CUDNN(GetConvolutionNdDescriptor, Convolution, int, int*, int*, int*, int*, int*, int*)
  (convolution, 3, &count, padding, strides, dilations, &mode, &computed_in);
  const char* math = maths[math_of(convolution) & 3];
  event("cudnn", name, 0, "%s %s %s computed-in %s math %s", a, b, c, type_name(computed_in), math);
  if (setting("GPU_STAND_IN_SLOW_US")) usleep(setting("GPU_STAND_IN_SLOW_US"));
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
int cudnnGetConvolutionForwardAlgorithmMaxCount(Handle h, int* n) { *n = 8; return 0; }
int cudnnGetConvolutionBackwardDataAlgorithmMaxCount(Handle h, int* n) { *n = 8; return 0; }
int cudnnGetConvolutionBackwardFilterAlgorithmMaxCount(Handle h, int* n) { *n = 8; return 0; }
int cudnnGetConvolutionForwardAlgorithm_v7(
    Handle h, Tensor x, Filter w, Convolution c, Tensor y, int asked, int* n, Choice* choices) {
  return choose(c, n, choices);
}
int cudnnGetConvolutionBackwardDataAlgorithm_v7(
    Handle h, Filter w, Tensor dy, Convolution c, Tensor dx, int asked, int* n, Choice* choices) {
  return choose(c, n, choices);
}
int cudnnGetConvolutionBackwardFilterAlgorithm_v7(
    Handle h, Tensor x, Tensor dy, Convolution c, Filter dw, int asked, int* n, Choice* choices) {
  return choose(c, n, choices);
}
int cudnnFindConvolutionForwardAlgorithmEx(
    Handle h, Tensor x, Data xs, Filter w, Data ws, Convolution c, Tensor y, Data ys, int asked, int* n,
    Choice* choices) {
  return choose(c, n, choices);
}
int cudnnFindConvolutionBackwardDataAlgorithmEx(
    Handle h, Filter w, Data ws, Tensor dy, Data dys, Convolution c, Tensor dx, Data dxs, int asked, int* n,
    Choice* choices) {
  return choose(c, n, choices);
}
int cudnnFindConvolutionBackwardFilterAlgorithmEx(
    Handle h, Tensor x, Data xs, Tensor dy, Data dys, Convolution c, Filter dw, Data dws, int asked, int* n,
    Choice* choices) {
  return choose(c, n, choices);
}
int cudnnGetConvolutionForwardWorkspaceSize(
    Handle h, Tensor x, Filter w, Convolution c, Tensor y, int algorithm, size_t* size) {
  *size = WORKSPACE;
  return 0;
}
int cudnnGetConvolutionBackwardDataWorkspaceSize(
    Handle h, Filter w, Tensor dy, Convolution c, Tensor dx, int algorithm, size_t* size) {
  *size = WORKSPACE;
  return 0;
}
int cudnnGetConvolutionBackwardFilterWorkspaceSize(
    Handle h, Tensor x, Tensor dy, Convolution c, Filter dw, int algorithm, size_t* size) {
  *size = WORKSPACE;
  return 0;
}

int cudnnConvolutionForward(
    Handle h, Data alpha, Tensor x, Data xs, Filter w, Data ws, Convolution c, int algorithm, Data space,
    size_t size, Data beta, Tensor y, Data ys) {
  Text a, b, d;
  convolve("forward", tensor_text(a, x), filter_text(b, w), tensor_text(d, y), c);
  return 0;
}
int cudnnConvolutionBackwardData(
    Handle h, Data alpha, Filter w, Data ws, Tensor dy, Data dys, Convolution c, int algorithm, Data space,
    size_t size, Data beta, Tensor dx, Data dxs) {
  Text a, b, d;
  convolve("backward-data", tensor_text(a, dy), filter_text(b, w), tensor_text(d, dx), c);
  return 0;
}
int cudnnConvolutionBackwardFilter(
    Handle h, Data alpha, Tensor x, Data xs, Tensor dy, Data dys, Convolution c, int algorithm, Data space,
    size_t size, Data beta, Filter dw, Data dws) {
  Text a, b, d;
  convolve("backward-filter", tensor_text(a, x), tensor_text(b, dy), filter_text(d, dw), c);
  return 0;
}
int cudnnConvolutionBackwardBias(Handle h, Data alpha, Tensor dy, Data dys, Data beta, Tensor db, Data dbs) {
  Text a, b;
  event("cudnn", "backward-bias", 0, "%s %s", tensor_text(a, dy), tensor_text(b, db));
  return 0;
}
int cudnnPoolingForward(Handle h, Data pooling, Data alpha, Tensor x, Data xs, Data beta, Tensor y, Data ys) {
  Text a, b;
  event("cudnn", "pool", 0, "%s %s", tensor_text(a, x), tensor_text(b, y));
  return 0;
}
int cudnnPoolingBackward(
    Handle h, Data pooling, Data alpha, Tensor y, Data ys, Tensor dy, Data dys, Tensor x, Data xs, Data beta,
    Tensor dx, Data dxs) {
  Text a, b;
  event("cudnn", "pool-backward", 0, "%s %s", tensor_text(a, dy), tensor_text(b, dx));
  return 0;
}
int cudnnAddTensor(Handle h, Data alpha, Tensor a, Data as, Data beta, Tensor c, Data cs) {
  Text b, d;
  event("cudnn", "add", 0, "%s %s", tensor_text(b, a), tensor_text(d, c));
  return 0;
}

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
