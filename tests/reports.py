"""What a quantized model says that was made with a report, on held-out text."""

from segpt.config.quant_report import Quality, QuantReport
from segpt.values import Quantized


def report_of(quantized: Quantized) -> QuantReport:
    assert quantized.report is not None
    return quantized.report


def quality_of(quantized: Quantized) -> Quality:
    quality = report_of(quantized).quality
    assert quality is not None
    return quality
