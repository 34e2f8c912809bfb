"""Name what is on image files: `python run.py photo.jpg ...`, with numpy, Pillow and onnxruntime or openvino."""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # for some others, Pillow starts programs


class Cascade:
    """The network of `folder`, which stops computing for an image as soon as an exit is sure of it."""

    def __init__(self, folder):
        self.about = json.loads(Path(folder, "cascade.json").read_text("utf-8"))
        self.stages = [open_stage(Path(folder, stage["file"]), stage["sha256"]) for stage in self.about["stages"]]

    def __call__(self, images):
        """Images (N, C, H, W) uint8 -> logits (N, classes) and the exit (N,) at which each left."""
        shape = self.about["image_shape"]
        if images.dtype != np.uint8 or list(images.shape[1:]) != shape:
            raise ValueError(f"images must be uint8 (N, *{shape}), got {images.dtype} {images.shape}")
        mean, std = (np.float32(self.about["normalization"][key])[:, None, None] * 255 for key in ("mean", "std"))
        features, rows, history = [(images - mean) / std], np.arange(len(images)), []
        answers = np.empty((len(images), len(self.about["classes"])), np.float32)
        exits = np.zeros(len(images), np.int64)
        thresholds = [np.inf if threshold is None else threshold for threshold in self.about["thresholds"]]
        for index, (stage, threshold) in enumerate(zip(self.stages, [*thresholds, None], strict=True)):
            *features, logits = stage(features)
            history.append(logits)
            answers[rows], exits[rows] = logits, index
            if threshold is None and self.about["fallback"] == "most_confident":
                surest = np.argmax([softmax(each).max(1) for each in history], 0)
                answers[rows] = np.stack(history)[surest, np.arange(len(rows))]
            stay = np.zeros(0, np.int64) if threshold is None else np.flatnonzero(self.score(logits) < threshold)
            if not len(stay):
                return answers, exits
            rows, features, history = rows[stay], [x[stay] for x in features], [each[stay] for each in history]

    def score(self, logits):
        """Return the confidence of each answer, from 0 to 1."""
        probs = softmax(logits)
        if self.about["score"] == "entropy":
            certainty = 1 + (probs * np.log(np.maximum(probs, 1e-38))).sum(1) / np.log(probs.shape[1])
            return certainty.clip(0, 1)  # an even softmax rounds to a little below 0
        best = np.sort(probs, 1)
        return best[:, -1] - best[:, -2] if self.about["score"] == "margin" else best[:, -1]


def softmax(logits):
    """(N, C) -> (N, C)."""
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


def open_stage(path, sha256):
    """A function from arrays to arrays."""
    content = path.read_bytes()
    if hashlib.sha256(content).hexdigest() != sha256:
        raise ValueError(f"{path} must be as it was exported, got other bytes")
    try:
        import onnxruntime
    except ImportError:
        import openvino

        core = openvino.Core()
        model = core.compile_model(core.read_model(content), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
        return lambda arrays: [value.copy() for value in model(arrays).to_tuple()]
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    names = [given.name for given in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def load_image(path, shape):
    """An image file as (1, C, H, W) uint8: the middle of the image, its shorter side scaled."""
    channels, height, width = shape
    image = ImageOps.exif_transpose(Image.open(path, formats=FORMATS)).convert("RGB" if channels == 3 else "L")
    image = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
    return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)[None]


if __name__ == "__main__":
    cascade = Cascade(Path(__file__).parent)
    for name in sys.argv[1:]:
        logits, exits = cascade(load_image(name, cascade.about["image_shape"]))
        probs = softmax(logits)[0]
        print(f"{name}: {cascade.about['classes'][probs.argmax()]} ({probs.max():.1%}, exit {exits[0] + 1})")
