/* Stand-in for libcudart: device memory is the host's, a stream does its work at once, kernels are logged and compute
 * nothing, except that TopK gives answers that obey the scorer's contract, the same for every video. */
#include "stub.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { OUT_OF_MEMORY = 2, STICKY = 700, CAPTURE_UNSUPPORTED = 900, CAPTURE_INVALIDATED = 901 };

typedef int Error;
typedef struct {
    unsigned x, y, z;
} Dim3;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* guards every static below */
static FILE *logfile;
static char failing_kind[32];
static long failing_call, calls_of_kind;
static Error failing_code, broken;
static int ties = 1;
static __thread Error last_error;

static int number(const char *variable, int otherwise) {
    const char *text = getenv(variable);
    return text ? atoi(text) : otherwise;
}

__attribute__((constructor)) static void start(void) {
    const char *path = getenv("CUDA_STUB_LOG"), *fail = getenv("CUDA_STUB_FAIL");
    if (path)
        logfile = fopen(path, "a");
    if (fail)
        sscanf(fail, "%31[a-z]:%ld:%d", failing_kind, &failing_call, &failing_code);
    ties = number("CUDA_STUB_TIES", 1);
}

void stub_log(const char *format, ...) {
    va_list arguments;
    if (!logfile)
        return;
    flockfile(logfile);
    fprintf(logfile, "%ld ", (long)syscall(SYS_gettid));
    va_start(arguments, format);
    vfprintf(logfile, format, arguments);
    va_end(arguments);
    fputc('\n', logfile);
    fflush(logfile);
    funlockfile(logfile);
}

static Error result(Error error) {
    if (error)
        last_error = error;
    return error;
}

int stub_fails(const char *kind) {
    pthread_mutex_lock(&lock);
    Error error = broken;
    if (!error && strcmp(kind, failing_kind) == 0 && ++calls_of_kind == failing_call) {
        error = failing_code;
        if (error >= STICKY && error < CAPTURE_UNSUPPORTED)
            broken = error;
    }
    pthread_mutex_unlock(&lock);
    if (error)
        stub_log("FAILS %s %d", kind, error);
    else if (!*failing_kind)
        stub_log("KIND %s", kind);
    return result(error);
}

/* ---- errors ---- */

Error cudaPeekAtLastError(void) { return broken ? broken : last_error; }

Error cudaGetLastError(void) {
    Error error = cudaPeekAtLastError();
    last_error = 0;
    return error;
}

const char *cudaGetErrorName(Error error) { return error ? "cudaErrorStub" : "cudaSuccess"; }

const char *cudaGetErrorString(Error error) {
    switch (error) {
    case 0: return "no error";
    case OUT_OF_MEMORY: return "out of memory";
    case 700: return "an illegal memory access was encountered";
    case 719: return "unspecified launch failure";
    case CAPTURE_UNSUPPORTED: return "operation not permitted when stream is capturing";
    case CAPTURE_INVALIDATED: return "operation failed due to a previous error during capture";
    default: return "an error that was asked for";
    }
}

/* ---- streams, events and graphs ---- */

enum { STREAMS = 4096 };
typedef struct {
    int used, capturing, spoilt;
} Stream;
static Stream streams[STREAMS];
static int capturing;

static Stream *known(void *stream) {
    Stream *found = stream;
    return found >= streams && found < streams + STREAMS ? found : NULL;
}

static long index_of(void *stream) { return known(stream) ? known(stream) - streams : -1; }

int stub_forbidden(const char *call) {
    Error error = 0;
    pthread_mutex_lock(&lock);
    if (capturing) {
        error = CAPTURE_UNSUPPORTED;
        for (int i = 0; i < STREAMS; i++)
            streams[i].spoilt |= streams[i].capturing;
    }
    pthread_mutex_unlock(&lock);
    if (error)
        stub_log("FORBIDDEN %s", call);
    return result(error);
}

Error cudaStreamCreateWithFlags(void **stream, unsigned flags) {
    int i = 1;
    Error error = stub_fails("stream");
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    while (i < STREAMS - 1 && streams[i].used)
        i++;
    streams[i] = (Stream){.used = 1};
    pthread_mutex_unlock(&lock);
    *stream = &streams[i];
    stub_log("cudaStreamCreate stream=%d", i);
    return 0;
}

Error cudaStreamCreate(void **stream) { return cudaStreamCreateWithFlags(stream, 0); }

Error cudaStreamDestroy(void *stream) {
    if (known(stream))
        known(stream)->used = 0;
    stub_log("cudaStreamDestroy stream=%ld", index_of(stream));
    return 0;
}

Error cudaStreamSynchronize(void *stream) {
    Stream *found = known(stream);
    Error error = stub_fails("sync");
    stub_log("cudaStreamSynchronize stream=%ld", index_of(stream));
    if (!error && found && found->capturing) {
        found->spoilt = 1;
        stub_log("FORBIDDEN cudaStreamSynchronize");
        error = CAPTURE_UNSUPPORTED;
    }
    return result(error);
}

Error cudaStreamIsCapturing(void *stream, int *status) {
    *status = known(stream) && known(stream)->capturing;
    return 0;
}

Error cudaStreamBeginCapture(void *stream, int mode) {
    Error error = stub_fails("capture");
    if (error)
        return error;
    pthread_mutex_lock(&lock);
    known(stream)->capturing = 1;
    known(stream)->spoilt = 0;
    capturing++;
    pthread_mutex_unlock(&lock);
    stub_log("cudaStreamBeginCapture stream=%ld mode=%d", index_of(stream), mode);
    return 0;
}

Error cudaStreamEndCapture(void *stream, void **graph) {
    pthread_mutex_lock(&lock);
    int spoilt = known(stream)->spoilt;
    known(stream)->capturing = known(stream)->spoilt = 0;
    capturing--;
    pthread_mutex_unlock(&lock);
    stub_log("cudaStreamEndCapture stream=%ld spoilt=%d", index_of(stream), spoilt);
    *graph = spoilt ? NULL : malloc(1);
    return result(spoilt ? CAPTURE_INVALIDATED : 0);
}

Error cudaGraphInstantiate(void **executable, void *graph, unsigned long long flags) {
    *executable = malloc(1);
    return 0;
}

Error cudaGraphDestroy(void *graph) { return free(graph), 0; }

Error cudaGraphExecDestroy(void *executable) { return free(executable), 0; }

Error cudaGraphLaunch(void *executable, void *stream) {
    stub_log("cudaGraphLaunch stream=%ld", index_of(stream));
    return stub_fails("launch");
}

Error cudaEventCreate(void **event) {
    stub_log("cudaEventCreate");
    *event = malloc(1);
    return 0;
}

Error cudaEventCreateWithFlags(void **event, unsigned flags) {
    return cudaEventCreate(event);
}

Error cudaEventDestroy(void *event) {
    stub_log("cudaEventDestroy");
    return free(event), 0;
}

Error cudaLaunchHostFunc(void *stream, void (*function)(void *), void *data) {
    function(data);
    return 0;
}

/* ---- memory ---- */

enum { RANGES = 1 << 14 };
typedef enum { NOWHERE, LOCKED, DEVICE } Place;
typedef struct {
    char *start;
    size_t size;
    Place place;
} Range;
static Range ranges[RANGES];

static void remember(void *start, size_t size, Place place) {
    pthread_mutex_lock(&lock);
    for (int i = 0; i < RANGES; i++)
        if (!ranges[i].start) {
            ranges[i] = (Range){start, size, place};
            break;
        }
    pthread_mutex_unlock(&lock);
}

static size_t forget(void *start) {
    size_t size = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < RANGES; i++)
        if (ranges[i].start == start) {
            size = ranges[i].size;
            ranges[i].start = NULL;
        }
    pthread_mutex_unlock(&lock);
    return size;
}

static Place place_of(const void *pointer) {
    const char *byte = pointer;
    Place place = NOWHERE;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < RANGES && !place; i++)
        if (ranges[i].start && byte >= ranges[i].start && byte < ranges[i].start + ranges[i].size)
            place = ranges[i].place;
    pthread_mutex_unlock(&lock);
    return place;
}

static size_t available(void) {
    const char *text = getenv("CUDA_STUB_MEGABYTES");
    size_t total = (text ? strtoul(text, NULL, 10) : 80000) << 20, held = 0;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < RANGES; i++)
        if (ranges[i].start && ranges[i].place == DEVICE)
            held += ranges[i].size;
    pthread_mutex_unlock(&lock);
    return held < total ? total - held : 0;
}

static Error allocate(const char *call, void **pointer, size_t size, Place place) {
    Error error = stub_fails("allocation");
    if (error || (error = stub_forbidden(call)))
        return error;
    if (place == DEVICE && size > available())
        return result(OUT_OF_MEMORY);
    if (posix_memalign(pointer, 256, size ? size : 1))
        return result(OUT_OF_MEMORY);
    memset(*pointer, 0, size);
    remember(*pointer, size, place);
    stub_log("%s size=%zu", call, size);
    return 0;
}

static Error release(const char *call, void *pointer) {
    Error error = pointer ? stub_forbidden(call) : 0;
    if (error || !pointer)
        return error;
    stub_log("%s size=%zu", call, forget(pointer));
    free(pointer);
    return 0;
}

Error cudaMalloc(void **pointer, size_t size) { return allocate("cudaMalloc", pointer, size, DEVICE); }
Error cudaFree(void *pointer) { return release("cudaFree", pointer); }
Error cudaMallocHost(void **pointer, size_t size) { return allocate("cudaMallocHost", pointer, size, LOCKED); }
Error cudaFreeHost(void *pointer) { return release("cudaFreeHost", pointer); }

Error cudaHostAlloc(void **pointer, size_t size, unsigned flags) {
    return cudaMallocHost(pointer, size);
}

Error cudaHostRegister(void *pointer, size_t size, unsigned flags) {
    Error error = stub_fails("register");
    if (error || (error = stub_forbidden("cudaHostRegister")))
        return error;
    if (size > (size_t)number("CUDA_STUB_LOCKABLE", INT32_MAX))
        return result(OUT_OF_MEMORY);
    remember(pointer, size, LOCKED);
    stub_log("cudaHostRegister size=%zu at=%p flags=%u", size, pointer, flags);
    return 0;
}

Error cudaHostUnregister(void *pointer) {
    forget(pointer);
    stub_log("cudaHostUnregister at=%p", pointer);
    return 0;
}

/* kind: 1 host to device, 2 device to host, 3 within the device. */
static Error copy(const char *call, void *to, const void *from, size_t size, int kind, void *stream) {
    Error error = stub_fails("copy");
    if (error)
        return error;
    const void *host = kind == 1 ? from : kind == 2 ? to : NULL;
    const char *memory = !host ? "device" : place_of(host) == LOCKED ? "locked" : "pageable";
    stub_log("%s size=%zu kind=%d memory=%s host=%p stream=%ld", call, size, kind, memory, host, index_of(stream));
    memmove(to, from, size);
    return 0;
}

Error cudaMemcpy(void *to, const void *from, size_t size, int kind) {
    Error error = stub_forbidden("cudaMemcpy");
    return error ? error : copy("cudaMemcpy", to, from, size, kind, NULL);
}

Error cudaMemcpyAsync(void *to, const void *from, size_t size, int kind, void *stream) {
    return copy("cudaMemcpyAsync", to, from, size, kind, stream);
}

Error cudaMemset(void *pointer, int value, size_t size) {
    Error error = stub_forbidden("cudaMemset");
    if (!error)
        memset(pointer, value, size);
    return error;
}

Error cudaMemsetAsync(void *pointer, int value, size_t size, void *stream) {
    memset(pointer, value, size);
    return 0;
}

Error cudaMemGetInfo(size_t *left, size_t *total) {
    *left = available();
    *total = 80000ul << 20;
    return 0;
}

Error cudaPointerGetAttributes(void *attributes, const void *pointer) {
    struct {
        int type, device;
        const void *on_device, *on_host;
    } found = {place_of(pointer), 0, pointer, pointer};
    memcpy(attributes, &found, sizeof found);
    return 0;
}

Error cudaMemPoolGetAttribute(void *pool, int attribute, void *value) {
    memset(value, 0, 8);
    return 0;
}

/* ---- devices ---- */

enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 }; /* cudaDeviceAttr */

static int capability(void) { return number("CUDA_STUB_CAPABILITY", 90); }

Error cudaSetDevice(int device) { return device < number("CUDA_STUB_DEVICES", 1) ? 0 : result(101); }

Error cudaGetDevice(int *device) {
    *device = 0;
    return 0;
}

Error cudaGetDeviceCount(int *count) {
    *count = number("CUDA_STUB_DEVICES", 1);
    return 0;
}

Error cudaDriverGetVersion(int *version) {
    *version = number("CUDA_STUB_DRIVER", 13000);
    return 0;
}

Error cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return 0;
}

Error cudaDeviceSynchronize(void) {
    Error error = stub_forbidden("cudaDeviceSynchronize");
    return error ? error : stub_fails("sync");
}

Error cudaDeviceGetAttribute(int *value, int attribute, int device) {
    switch (attribute) {
    case 1: *value = 1024; break;          /* threads of a block */
    case 8: *value = 49152; break;         /* shared memory of a block */
    case 10: *value = 32; break;           /* threads of a warp */
    case 16: *value = 132; break;          /* multiprocessors */
    case 39: *value = 2048; break;         /* threads of a multiprocessor */
    case CAPABILITY_MAJOR: *value = capability() / 10; break;
    case CAPABILITY_MINOR: *value = capability() % 10; break;
    case 81: *value = 233472; break;       /* shared memory of a multiprocessor */
    case 97: *value = 232448; break;       /* shared memory of a block that asks for more */
    default: *value = 1;
    }
    return 0;
}

/* The beginning of cudaDeviceProp of CUDA 13, as far as ONNX Runtime reads it. */
typedef struct {
    char name[256], uuid[16], luid[8];
    unsigned luid_mask;
    size_t memory, shared_memory;
    int registers, warp;
    size_t pitch;
    int block_threads, block[3], grid[3];
    size_t constant_memory;
    int major, minor;
    size_t texture_alignment, texture_pitch;
    int multiprocessors;
} Properties;

Error cudaGetDeviceProperties(Properties *properties, int device) {
    *properties = (Properties){
        .name = "CUDA stub",
        .memory = 80ul << 30,
        .shared_memory = 49152,
        .registers = 65536,
        .warp = 32,
        .block_threads = 1024,
        .block = {1024, 1024, 64},
        .grid = {INT32_MAX, 65535, 65535},
        .constant_memory = 65536,
        .major = capability() / 10,
        .minor = capability() % 10,
        .multiprocessors = 132,
    };
    return 0;
}

/* ---- kernels ---- */

enum { KERNELS = 1 << 16 };
static struct {
    const void *function;
    const char *name;
} kernels[KERNELS]; /* a hash table */

static unsigned slot_of(const void *function) {
    unsigned slot = (unsigned)((uintptr_t)function >> 4) * 2654435761u % KERNELS;
    while (kernels[slot].function && kernels[slot].function != function)
        slot = (slot + 1) % KERNELS;
    return slot;
}

void **__cudaRegisterFatBinary(void *binary) {
    static void *handle;
    return &handle;
}

void __cudaRegisterFunction(void **handle, const char *function, char *device, const char *name) {
    unsigned slot = slot_of(function);
    kernels[slot].function = function;
    kernels[slot].name = name;
}

static __thread struct {
    Dim3 grid, block;
    size_t shared;
    void *stream;
} pushed;

unsigned __cudaPushCallConfiguration(Dim3 grid, Dim3 block, size_t shared, void *stream) {
    pushed.grid = grid;
    pushed.block = block;
    pushed.shared = shared;
    pushed.stream = stream;
    return 0;
}

Error __cudaPopCallConfiguration(Dim3 *grid, Dim3 *block, size_t *shared, void **stream) {
    *grid = pushed.grid;
    *block = pushed.block;
    *shared = pushed.shared;
    *stream = pushed.stream;
    return 0;
}

Error __cudaGetKernel(const void **kernel, const void *function) {
    *kernel = function;
    return 0;
}

Error cudaFuncGetAttributes(void *attributes, const void *function) {
    memset(attributes, 0, 64);
    return 0;
}

Error cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(int *blocks, const void *f, int n, size_t s, unsigned o) {
    *blocks = 8;
    return 0;
}

/* ONNX Runtime's TopK kernels, (X, scores, labels, shape, size, axis, K, ...) with a block a row, of `count` labels: the
 * k best of scores 1/2, 1/3, ... of labels 0, 1, ..., every CUDA_STUB_TIES of them alike and then, as a GPU may, in
 * another order and, where not all of them are among the k, any of them: here the last ones. */
static void answer(unsigned rows, void **arguments, int64_t count) {
    float *scores = *(float **)arguments[1];
    int64_t *labels = *(int64_t **)arguments[2], k = *(int64_t *)arguments[6];
    for (unsigned row = 0; row < rows; row++)
        for (int64_t i = 0; i < k; i++) {
            int64_t group = i / ties, first = group * ties, most = first + ties < count ? ties : count - first;
            scores[row * k + i] = 1.0f / (float)(2 + group);
            labels[row * k + i] = first + most - 1 - i % ties;
        }
}

Error cudaLaunchKernel(const void *function, Dim3 grid, Dim3 block, void **arguments, size_t shared, void *stream) {
    const char *name = kernels[slot_of(function)].name;
    Error error = stub_fails("launch");
    if (error)
        return error;
    name = name ? name : "unknown";
    stub_log("cudaLaunchKernel kernel=%s grid=%u block=%u stream=%ld", name, grid.x, block.x, index_of(stream));
    if (strstr(name, "RadixTopK"))
        answer(grid.x, arguments, *(int64_t *)arguments[9]);
    if (strstr(name, "BitonicTopK"))
        answer(grid.x, arguments, *(int64_t *)arguments[10]);
    return 0;
}

Error __cudaLaunchKernel(const void *kernel, Dim3 grid, Dim3 block, void **arguments, size_t shared, void *stream) {
    return cudaLaunchKernel(kernel, grid, block, arguments, shared, stream);
}

Error cudaLaunchCooperativeKernel(const void *f, Dim3 grid, Dim3 block, void **arguments, size_t shared, void *stream) {
    return cudaLaunchKernel(f, grid, block, arguments, shared, stream);
}
