"""Training networks with several exits.

`fit` trains by a recipe, a `TrainConfig`. A loss, an optimiser or a schedule of one's own wants a loop of one's own,
here with the focal loss (arXiv 1708.02002) of every exit, AdamW and a cosine:

    import torch
    from torch.nn.functional import cross_entropy

    from eeutils import create_model, load_data, predict
    from eeutils.data import Augmentation, TrainBatches
    from eeutils.training import History, choose_device

    def focal_loss(logits, labels):
        loss = cross_entropy(logits, labels, reduction="none")
        return ((1 - torch.exp(-loss)) ** 2 * loss).mean()

    device, epochs = choose_device(), 3
    data = load_data("digits")
    net = create_model("resnet18_2exits", width=4, stem="imagenet").to(device)
    batches = TrainBatches(data.train, 64, Augmentation(flip=False, translate=2, cutout=0), device, seed=0)
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(batches))
    rows = []
    for epoch in range(epochs):
        net.train()
        total = torch.zeros(net.num_exits, device=device)
        for images, labels in batches.epoch(epoch):  # normalised; an augmentation of one's own would change them here
            losses = torch.stack([focal_loss(answer, labels) for answer in net(images)])
            losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            total += losses.detach()
        means = (total / len(batches)).tolist()
        accuracies = predict(net, data.val).accuracy.tolist()
        row = {"epoch": epoch + 1, "train_loss": sum(means) / len(means)}
        row |= {f"train_loss_exit{number}": loss for number, loss in enumerate(means, 1)}
        row |= {f"val_accuracy_exit{number}": share for number, share in enumerate(accuracies, 1)}
        rows.append(row)
    net.eval()
    history = History(tuple(rows))

What `fit` adds is then missing: resuming, mixed precision, averaged weights, several GPUs.
"""

from eeutils.device import choose_device, default_device
from eeutils.training.config import LossConfig, TrainConfig, list_recipes, recipe
from eeutils.training.history import History
from eeutils.training.loop import fit

__all__ = ["History", "LossConfig", "TrainConfig", "choose_device", "default_device", "fit", "list_recipes", "recipe"]
