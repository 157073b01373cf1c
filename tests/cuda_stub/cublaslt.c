/* Stand-in for libcublasLt. */
#include "stub.h"

static int dummy;

static int made(void **object) {
    *object = &dummy;
    return 0;
}

int cublasLtCreate(void **handle) { return made(handle); }
int cublasLtMatmulDescCreate(void **object) { return made(object); }
int cublasLtMatmulPreferenceCreate(void **object) { return made(object); }
int cublasLtMatrixLayoutCreate(void **object) { return made(object); }
int cublasLtMatrixTransformDescCreate(void **object) { return made(object); }

int cublasLtMatmulAlgoGetHeuristic(void *handle, void *operation, void *a, void *b, void *c, void *d, void *preference,
                                   int wanted, void *results, int *found) {
    *found = 1;
    return 0;
}

int cublasLtMatmul(void *handle) {
    int status = stub_fails("product");
    if (!status)
        stub_log("cublasLtMatmul");
    return status;
}
