// Runs an engine with CleaveAttention outside Python: example_host ENGINE LIBRARY.
// Its attention copies q: a real attention server goes there.
#include <NvInferRuntime.h>
#include <cuda_runtime_api.h>

#include <fstream>
#include <iostream>
#include <iterator>
#include <memory>
#include <vector>

#include "cleave_plugin.h"

namespace {

struct Logger final : nvinfer1::ILogger {
    void log(Severity severity, char const* message) noexcept override
    {
        if (severity <= Severity::kWARNING) {
            std::cerr << message << '\n';
        }
    }
};

int32_t copyQuery(void* context, CleaveCall const* call)
{
    size_t const bytes = call->type == CLEAVE_FLOAT32 ? 4 : 2;
    size_t const size = static_cast<size_t>(call->tokens) * static_cast<size_t>(call->heads * call->head_dim) * bytes;
    ++*static_cast<int*>(context);
    auto const stream = static_cast<cudaStream_t>(call->stream);
    return static_cast<int32_t>(cudaMemcpyAsync(call->out, call->q, size, cudaMemcpyDeviceToDevice, stream));
}

}  // namespace

int main(int argc, char** argv)
{
    if (argc != 3) {
        return 2;
    }
    Logger logger;
    std::unique_ptr<nvinfer1::IRuntime> const runtime{nvinfer1::createInferRuntime(logger)};
    if (runtime->getPluginRegistry().loadLibrary(argv[2]) == nullptr) {
        std::cerr << "the plugin library cannot be loaded: build it with cmake, and give its path\n";
        return 1;
    }
    int layers = 0;
    CleaveHost const host{CLEAVE_ABI, &layers, copyQuery};
    cleave_bind(&host);
    std::ifstream file{argv[1], std::ios::binary};
    std::vector<char> const plan{std::istreambuf_iterator<char>{file}, {}};
    std::unique_ptr<nvinfer1::ICudaEngine> const engine{runtime->deserializeCudaEngine(plan.data(), plan.size())};
    std::unique_ptr<nvinfer1::IExecutionContext> const context{engine ? engine->createExecutionContext() : nullptr};
    cleave_bind(nullptr);
    if (!context) {
        std::cerr << "the engine cannot be loaded\n";
        return 1;
    }
    // From here on: set shapes and addresses of inputs_embeds, logit_rows and logits, and call enqueueV3.
    std::cout << engine->getNbIOTensors() << " tensors, " << layers << " layers run so far\n";
    return 0;
}
