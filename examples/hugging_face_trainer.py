"""Hugging Face Trainer: a small BERT from its configuration (nothing is downloaded), resumed, folded and saved."""

import copy

import torch
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification, Trainer, TrainingArguments, set_seed

from fisherlayers import fold, reconstruct

CONFIG = BertConfig(
    vocab_size=32,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=64,
    max_position_embeddings=16,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
)


class FirstToken(Dataset):
    """Sequences of 12 symbols; the label says whether the first one is among the upper half."""

    def __init__(self, size):
        self.tokens = torch.randint(0, 32, (size, 12), generator=torch.Generator().manual_seed(0))

    def __len__(self):
        return len(self.tokens)

    def __getitem__(self, index):
        return {"input_ids": self.tokens[index], "labels": int(self.tokens[index, 0] >= 16)}


def trainer(epochs):
    """Return a trainer of a new reconstructed model; it builds AdamW and its scheduler itself."""
    set_seed(0)
    model = reconstruct(BertForSequenceClassification(CONFIG))
    arguments = TrainingArguments(
        output_dir="runs",
        num_train_epochs=epochs,
        per_device_train_batch_size=32,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_strategy="epoch",
        logging_steps=8,
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    return Trainer(model=model, args=arguments, train_dataset=FirstToken(512))


def main():
    """Train for one epoch, and for three more from the Trainer's checkpoint."""
    trainer(1).train()
    resumed = trainer(4)
    resumed.train(resume_from_checkpoint=True)
    losses = [entry["loss"] for entry in resumed.state.log_history if "loss" in entry]
    print("loss at every eighth step:", *(f"{loss:.4f}" for loss in losses))
    assert losses[-1] < 0.2 * losses[0]

    model = resumed.model.eval()
    tokens = FirstToken(64).tokens
    before = model(tokens).logits
    fold(copy.deepcopy(model)).save_pretrained("plain")  # anybody can load this
    plain = BertForSequenceClassification.from_pretrained("plain").eval()
    assert torch.allclose(plain(tokens).logits, before, atol=1e-4)
    print("saved plain:", ", ".join(sorted(plain.state_dict())[:2]), "...")


if __name__ == "__main__":
    main()
