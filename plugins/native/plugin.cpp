#include "plugin.hpp"

#include <cuda_runtime_api.h>

#include <atomic>
#include <cstdio>
#include <cstring>
#include <new>

using namespace nvinfer1;

namespace cleave {
namespace {

constexpr char kName[] = "CleaveAttention";
constexpr char kVersion[] = "1";
constexpr char kNamespace[] = "cleave";
constexpr int32_t kFormat = 1;

thread_local CleaveHost const* boundHost = nullptr;
std::atomic<ILoggerFinder*> loggerFinder{nullptr};

/// An error goes to TensorRT's logger, where it gave one, else to stderr.
template <typename... Values>
void tell(char const* format, Values... values) noexcept
{
    std::array<char, 320> text{};
    std::snprintf(text.data(), text.size(), format, values...);
    ILoggerFinder* const finder = loggerFinder.load();
    ILogger* const logger = finder == nullptr ? nullptr : finder->findLogger();
    if (logger != nullptr) {
        logger->log(ILogger::Severity::kERROR, text.data());
    } else {
        std::fprintf(stderr, "%s\n", text.data());
    }
}

bool isTaken(DataType type) noexcept
{
    return type == DataType::kFLOAT || type == DataType::kHALF || type == DataType::kBF16;
}

CleaveType typeOf(DataType type) noexcept
{
    return type == DataType::kFLOAT ? CLEAVE_FLOAT32 : type == DataType::kHALF ? CLEAVE_FLOAT16 : CLEAVE_BFLOAT16;
}

}  // namespace

bool Fields::isValid() const noexcept
{
    if (version != kFormat) {
        tell("the engine holds CleaveAttention plugins of version %d, and this library has version %d; build the "
             "engine again", version, kFormat);
        return false;
    }
    if (layer < 0 || heads < 1 || kvHeads < 1 || headDim < 1 || heads % kvHeads != 0) {
        tell("the CleaveAttention node of layer %d has %d heads, %d kv_heads and head_dim %d; its fields come from "
             "cleave.plugins.tensorrt.graph.with_fields", layer, heads, kvHeads, headDim);
        return false;
    }
    return true;
}

Plugin::Plugin(Fields const& fields, CleaveHost const* host, bool isBuilding) noexcept
    : fields_(fields)
    , host_(host)
    , isBuilding_(isBuilding)
    , held_{PluginField{"layer", &fields_.layer, PluginFieldType::kINT32, 1},
          PluginField{"heads", &fields_.heads, PluginFieldType::kINT32, 1},
          PluginField{"kv_heads", &fields_.kvHeads, PluginFieldType::kINT32, 1},
          PluginField{"head_dim", &fields_.headDim, PluginFieldType::kINT32, 1},
          PluginField{"version", &fields_.version, PluginFieldType::kINT32, 1}}
    , collection_{static_cast<int32_t>(held_.size()), held_.data()}
{
}

IPluginCapability* Plugin::getCapabilityInterface(PluginCapabilityType type) noexcept
{
    switch (type) {
    case PluginCapabilityType::kCORE: return static_cast<IPluginV3OneCore*>(this);
    case PluginCapabilityType::kBUILD: return static_cast<IPluginV3OneBuild*>(this);
    case PluginCapabilityType::kRUNTIME: return static_cast<IPluginV3OneRuntime*>(this);
    }
    return nullptr;
}

IPluginV3* Plugin::clone() noexcept
{
    CleaveHost const* const host = boundHost != nullptr ? boundHost : host_;
    return new (std::nothrow) Plugin(fields_, host, isBuilding_);
}

char const* Plugin::getPluginName() const noexcept { return kName; }

char const* Plugin::getPluginVersion() const noexcept { return kVersion; }

char const* Plugin::getPluginNamespace() const noexcept { return kNamespace; }

int32_t Plugin::getNbOutputs() const noexcept { return 1; }

int32_t Plugin::configurePlugin(DynamicPluginTensorDesc const* in, int32_t, DynamicPluginTensorDesc const* out,
    int32_t) noexcept
{
    return fits({&in[0].desc.dims, &in[1].desc.dims, &in[2].desc.dims, &out[0].desc.dims}) ? 0 : -1;
}

bool Plugin::supportsFormatCombination(int32_t pos, DynamicPluginTensorDesc const* inOut, int32_t, int32_t) noexcept
{
    PluginTensorDesc const& own = inOut[pos].desc;
    return own.format == TensorFormat::kLINEAR && own.type == inOut[0].desc.type && isTaken(own.type);
}

int32_t Plugin::getOutputDataTypes(DataType* outputTypes, int32_t, DataType const* inputTypes, int32_t) const noexcept
{
    outputTypes[0] = inputTypes[0];
    return 0;
}

int32_t Plugin::getOutputShapes(DimsExprs const* inputs, int32_t, DimsExprs const*, int32_t, DimsExprs* outputs,
    int32_t, IExprBuilder&) noexcept
{
    outputs[0] = inputs[0];
    return 0;
}

int32_t Plugin::setTactic(int32_t) noexcept { return 0; }

int32_t Plugin::onShapeChange(PluginTensorDesc const* in, int32_t, PluginTensorDesc const* out, int32_t) noexcept
{
    return fits({&in[0].dims, &in[1].dims, &in[2].dims, &out[0].dims}) ? 0 : -1;
}

IPluginV3* Plugin::attachToContext(IPluginResourceContext*) noexcept { return clone(); }

PluginFieldCollection const* Plugin::getFieldsToSerialize() noexcept { return &collection_; }

int32_t Plugin::enqueue(PluginTensorDesc const* inputDesc, PluginTensorDesc const*, void const* const* inputs,
    void* const* outputs, void*, cudaStream_t stream) noexcept
{
    int64_t const tokens = inputDesc[0].dims.d[0];
    if (isBuilding_) {
        // Only timed, perhaps under capture: out has to be defined, and nobody is called.
        size_t const bytes = inputDesc[0].type == DataType::kFLOAT ? 4 : 2;
        size_t const values = static_cast<size_t>(tokens) * static_cast<size_t>(fields_.heads * fields_.headDim);
        return static_cast<int32_t>(cudaMemsetAsync(outputs[0], 0, values * bytes, stream));
    }
    if (host_ == nullptr) {
        tell("a CleaveAttention plugin of layer %d ran with no host; call cleave_bind before the engine is "
             "deserialised and its contexts are created", fields_.layer);
        return -1;
    }
    CleaveCall const call{fields_.layer, fields_.heads, fields_.kvHeads, fields_.headDim, tokens,
        typeOf(inputDesc[0].type), inputs[0], inputs[1], inputs[2], outputs[0], stream};
    int32_t const status = host_->run(host_->context, &call);
    if (status != 0) {
        tell("the host of CleaveAttention failed at layer %d with status %d", fields_.layer, status);
    }
    return status;
}

bool Plugin::fits(std::array<Dims const*, 4> const& shapes) const noexcept
{
    int64_t const q = static_cast<int64_t>(fields_.heads) * fields_.headDim;
    int64_t const kv = static_cast<int64_t>(fields_.kvHeads) * fields_.headDim;
    std::array<int64_t, 4> const widths{q, kv, kv, q};
    for (size_t i = 0; i < widths.size(); ++i) {
        Dims const& dims = *shapes[i];
        if (dims.nbDims != 2 || (dims.d[1] != -1 && dims.d[1] != widths[i])) {
            tell("tensor %zu of CleaveAttention, layer %d, has %lld columns; it must have %lld", i, fields_.layer,
                static_cast<long long>(dims.nbDims == 2 ? dims.d[1] : 0), static_cast<long long>(widths[i]));
            return false;
        }
    }
    return true;
}

Creator::Creator() noexcept
    : names_{PluginField{"layer", nullptr, PluginFieldType::kINT32, 1},
          PluginField{"heads", nullptr, PluginFieldType::kINT32, 1},
          PluginField{"kv_heads", nullptr, PluginFieldType::kINT32, 1},
          PluginField{"head_dim", nullptr, PluginFieldType::kINT32, 1}}
    , collection_{static_cast<int32_t>(names_.size()), names_.data()}
{
}

char const* Creator::getPluginName() const noexcept { return kName; }

char const* Creator::getPluginVersion() const noexcept { return kVersion; }

char const* Creator::getPluginNamespace() const noexcept { return kNamespace; }

PluginFieldCollection const* Creator::getFieldNames() noexcept { return &collection_; }

IPluginV3* Creator::createPlugin(char const*, PluginFieldCollection const* given, TensorRTPhase phase) noexcept
{
    Fields fields;
    for (int32_t i = 0; given != nullptr && i < given->nbFields; ++i) {
        PluginField const& field = given->fields[i];
        if (field.data == nullptr || field.length != 1 || field.type != PluginFieldType::kINT32) {
            continue;
        }
        int32_t const value = *static_cast<int32_t const*>(field.data);
        if (std::strcmp(field.name, "layer") == 0) {
            fields.layer = value;
        } else if (std::strcmp(field.name, "heads") == 0) {
            fields.heads = value;
        } else if (std::strcmp(field.name, "kv_heads") == 0) {
            fields.kvHeads = value;
        } else if (std::strcmp(field.name, "head_dim") == 0) {
            fields.headDim = value;
        } else if (std::strcmp(field.name, "version") == 0) {
            fields.version = value;
        }
    }
    bool const isBuilding = phase == TensorRTPhase::kBUILD;
    return fields.isValid() ? new (std::nothrow) Plugin(fields, boundHost, isBuilding) : nullptr;
}

}  // namespace cleave

extern "C" int32_t cleave_bind(CleaveHost const* host)
{
    if (host != nullptr && host->abi != CLEAVE_ABI) {
        return 1;
    }
    cleave::boundHost = host;
    return 0;
}

// What IPluginRegistry::loadLibrary and trtexec --dynamicPlugins look for in a library.

extern "C" IPluginCreatorInterface* const* getCreators(int32_t& count)
{
    static cleave::Creator creator;
    static IPluginCreatorInterface* const creators[] = {&creator};
    count = 1;
    return creators;
}

extern "C" void setLoggerFinder(ILoggerFinder* finder) { cleave::loggerFinder = finder; }
