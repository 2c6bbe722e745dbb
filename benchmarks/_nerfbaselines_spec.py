"""What NerfBaselines is told of nelf: name this file in ``NERFBASELINES_REGISTER``, its folder in ``PYTHONPATH``."""

from nerfbaselines import register

register(
    {
        "id": "nelf",
        "method_class": "nerfbaselines_nelf:NeLF",
        "metadata": {
            "name": "nelf",
            "description": "A radiance field (Instant-NGP) distilled into a light field (GridR2L).",
            "licenses": [{"name": "MIT"}],
        },
    }
)
register({"id": "nelf-without-lpips", "evaluation_protocol_class": "nerfbaselines_nelf:WithoutLPIPS"})
