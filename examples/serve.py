"""Serve a classifier over HTTP, requests in batches: `python examples/serve.py`.

    pip install 'eeutils[serve]'
    curl -F request=@photo.jpg http://127.0.0.1:8000/predict

LitServe (https://lightning.ai/litserve) collects the requests of `--wait` seconds into one batch and runs `--workers`
copies of the classifier. When one machine is not enough, put several behind a load balancer.
"""

from dataclasses import dataclass

import litserve
import torch
import tyro
from fastapi import HTTPException, UploadFile

from eeutils import load_classifier
from eeutils.data.images import as_tensor, open_image


@dataclass(frozen=True)
class Options:
    """Options: what to serve, and how."""

    weights: str = "resnet18_3exits-spp-cifar10-w16"
    engine: str = "torch"
    precision: str | None = None
    port: int = 8000
    host: str = "127.0.0.1"
    batch: int = 64
    wait: float = 0.005
    workers: int = 1


class EarlyExitAPI(litserve.LitAPI):
    """Image file -> class, probability and exit."""

    def __init__(self, options: Options) -> None:
        super().__init__(max_batch_size=options.batch, batch_timeout=options.wait)
        self.options = options

    def setup(self, device: str) -> None:
        """Load the classifier, once in each worker."""
        self.classifier = load_classifier(
            self.options.weights, engine=self.options.engine, precision=self.options.precision
        )

    def decode_request(self, request: UploadFile) -> torch.Tensor:
        """Read an uploaded file."""
        try:
            image = open_image(request.file, request.filename or "upload")
            return as_tensor(image, self.classifier.image_shape[-1])[None]
        except Exception as error:
            raise HTTPException(400, f"no readable image: {error}") from error

    def batch(self, inputs: list[torch.Tensor]) -> torch.Tensor:
        """Make one batch of the images that came meanwhile."""
        return torch.cat(inputs)

    def predict(self, x: torch.Tensor) -> list[dict[str, object]]:
        """Answer for every image of a batch; one request alone is a batch of one."""
        result = self.classifier(x)
        names = [self.classifier.classes[index] for index in result.predicted.tolist()]
        rows = zip(names, result.confidence.tolist(), result.exit_index.tolist(), strict=True)
        return [{"class": name, "probability": share, "exit": index + 1} for name, share, index in rows]

    def unbatch(self, output: list[dict[str, object]]) -> list[dict[str, object]]:
        """One answer for each request."""
        return output


def main() -> None:
    """Serve until interrupted."""
    options = tyro.cli(Options, description=__doc__)
    server = litserve.LitServer(EarlyExitAPI(options), accelerator="cpu", workers_per_device=options.workers)
    server.run(host=options.host, port=options.port, generate_client_file=False)


if __name__ == "__main__":
    main()
