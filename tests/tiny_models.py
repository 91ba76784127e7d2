"""The sizes of models of random weights that train within a second."""

SIZES = {
    "vocab_size": 400,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
}
ENDS = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 0}
