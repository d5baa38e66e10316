// llama.cpp from its start to the first token of an answer: first_token MODEL.gguf THREADS PROMPT
// Built and run by cold_start.py. Greedy, without the chat template, as `biplane run --raw -n 1`.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama.h"

static void quiet(enum ggml_log_level level, const char * text, void * data) {}

int main(int argc, char ** argv) {
    if (argc != 4) return 2;
    llama_log_set(quiet, NULL);
    llama_backend_init();
    struct llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) return 1;
    struct llama_context_params params = llama_context_default_params();
    params.n_ctx = 512;
    params.n_threads = params.n_threads_batch = atoi(argv[2]);
    struct llama_context * context = llama_init_from_model(model, params);
    if (!context) return 1;
    const struct llama_vocab * vocab = llama_model_get_vocab(model);
    llama_token ids[512];
    int n = llama_tokenize(vocab, argv[3], strlen(argv[3]), ids, 512, true, false);
    if (n <= 0 || llama_decode(context, llama_batch_get_one(ids, n)) != 0) return 1;
    const float * logits = llama_get_logits_ith(context, -1);
    llama_token best = 0;
    for (int id = 1; id < llama_vocab_n_tokens(vocab); id++) {
        if (logits[id] > logits[best]) best = id;
    }
    char piece[64];
    int length = llama_token_to_piece(vocab, best, piece, sizeof piece, 0, false);
    printf("%.*s\n", length > 0 ? length : 0, piece);
    return 0;
}
