"""Kokoro-82M in PyTorch, in batches, with the weights of its int8 ONNX file made float32.

The ONNX graph (StyleTTS 2: ALBERT, prosody predictor, ISTFTNet) is written out here by hand. All clips of a batch have
the same number of phonemes (`read_text`) or frames (`speak`). Nothing is padded, so a clip does not depend on the
other clips of its batch. Needs numpy, onnx and torch.
"""

import re

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F


SAMPLING_RATE = 24_000
FRAME_SAMPLES = 600  # a frame of the durations: 25 ms
STYLE_WIDTH = 128  # of each half of a style vector: [voice, prosody]
ALBERT_LAYERS, ALBERT_HEADS = 12, 12  # one layer, run 12 times
LSTM_UNITS = 256
DILATIONS = (1, 3, 5)
HARMONICS = 9
FFT_SIZE, FFT_HOP = 20, 5
EMBEDDED = ("word", "position", "token_type")

ALBERT = "encoder.bert.encoder.albert_layer_groups.0.albert_layers.0"
GENERATOR = "decoder.decoder.generator"


# ---- weights ----


def read_weights(model: bytes) -> dict[str, np.ndarray]:
    """float32 weights of the ONNX file by the names of the PyTorch modules (`encoder.predictor.F0.0.conv1.weight`).

    A linear weight keeps the layout [in, out], an LSTM's [2, in, 4 * units].
    """
    import onnx
    from onnx.numpy_helper import to_array

    graph = onnx.load_from_string(model).graph
    tensors = {tensor.name: to_array(tensor) for tensor in graph.initializer}
    weights = {name: value for name, value in tensors.items() if value.dtype == np.float32}
    zero_points = {node.input[0]: node.input[2] for node in graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.node:
        path = module_path(node.output[0])
        if re.search(r"_\d+$", path):
            continue  # ALBERT's one layer again
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            weights[f"{path}.weight"] = float_weight(tensors, node.input[1], node.input[3])
        elif node.op_type == "Gather" and node.input[0].endswith(".weight_quantized"):  # an embedding
            name = node.input[0].removesuffix("_quantized")
            weights[name] = float_weight(tensors, node.input[0], zero_points[node.output[0]])
        elif node.op_type in ("Conv", "ConvTranspose", "MatMul") and node.input[1] in tensors:
            weights[f"{path}.weight"] = tensors[node.input[1]]
        elif node.op_type == "DynamicQuantizeLSTM":
            weights[f"{path}.weight_ih"] = float_weight(tensors, node.input[1], node.input[9])
            weights[f"{path}.weight_hh"] = float_weight(tensors, node.input[2], node.input[11])
            weights[f"{path}.bias"] = tensors[node.input[3]]
    return weights


def module_path(output: str) -> str:
    """The module of an ONNX node by the name of the node's output: `/encoder/F0.1/conv1/Conv_output_0_...`."""
    path = ".".join(output.strip("/").split("/")[:-1])
    path = re.sub(r"^encoder\.(F0|N|F0_proj|N_proj|shared)(?=\.|$)", r"encoder.predictor.\1", path)
    return re.sub(r"(cnn\.\d)\.cnn\.\d\.0", r"\1.0", path).replace("asr_res.asr_res", "asr_res")


def float_weight(tensors: dict[str, np.ndarray], name: str, zero_point: str) -> np.ndarray:
    """The float32 values of an int8 weight; its scale is one number, one a column, or one a direction (LSTM)."""
    quantized, scale = tensors[name], tensors[re.sub("_quantized$", "_scale", name)]
    zero = tensors[zero_point].astype(np.float32)
    if quantized.ndim == 3 and scale.ndim == 1:
        scale, zero = scale[:, None, None], zero[:, None, None]
    return (quantized.astype(np.float32) - zero) * scale


def torch_lstm(weight_ih: np.ndarray, weight_hh: np.ndarray, bias: np.ndarray) -> torch.nn.LSTM:
    """A bidirectional LSTM from ONNX's weights, whose gates come in the order input, output, forget, cell."""

    def gates(value: np.ndarray) -> Tensor:
        i, o, f, c = np.split(value, 4, axis=0)
        return torch.from_numpy(np.concatenate([i, f, c, o]))

    lstm = torch.nn.LSTM(weight_ih.shape[1], LSTM_UNITS, batch_first=True, bidirectional=True)
    values = {}
    for direction, suffix in enumerate(("l0", "l0_reverse")):
        values[f"weight_ih_{suffix}"] = gates(weight_ih[direction].T)
        values[f"weight_hh_{suffix}"] = gates(weight_hh[direction].T)
        half = len(bias[direction]) // 2
        values[f"bias_ih_{suffix}"], values[f"bias_hh_{suffix}"] = (
            gates(bias[direction][:half]),
            gates(bias[direction][half:]),
        )
    lstm.load_state_dict(values)
    return lstm.eval().requires_grad_(False)


# ---- the model ----


class KokoroTorch:
    """The model on a device.

    Args: model: the bytes of the ONNX file.
    """

    def __init__(self, model: bytes, device: str | torch.device):
        weights = read_weights(model)
        self.device = torch.device(device)
        self.lstms = {}
        for path in [name.removesuffix(".weight_ih") for name in weights if name.endswith(".weight_ih")]:
            parts = [weights.pop(f"{path}.{part}") for part in ("weight_ih", "weight_hh", "bias")]
            self.lstms[path] = torch_lstm(*parts).to(self.device)
            self.lstms[path].flatten_parameters()
        self.weights = {name: torch.tensor(value, device=self.device) for name, value in weights.items()}
        self.window = torch.hann_window(FFT_SIZE, device=self.device)
        self.harmonics = torch.arange(1, HARMONICS + 1, dtype=torch.float32, device=self.device)

    # ---- text ----

    def read_text(self, tokens: Tensor, style: Tensor, speed: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Features for the prosody [batch, tokens, 640], features of the text [batch, tokens, 512] and durations in
        frames (int64 [batch, tokens], at least 1).

        Args: tokens: int64 [batch, tokens] with a zero at either end. style: [batch, 256]. speed: [batch].
        """
        style = style[:, STYLE_WIDTH:]
        features = self.prosody_features(self.linear("encoder.bert_encoder", self.albert(tokens)), style)
        hidden = self.lstms["encoder.predictor.lstm"](features)[0]
        frames = self.linear("encoder.predictor.duration_proj.linear_layer", hidden).sigmoid().sum(-1)
        durations = (frames / speed[:, None]).round().clamp(min=1).long()
        return features, self.text_features(tokens), durations

    def albert(self, tokens: Tensor) -> Tensor:
        """Hidden states of shape [batch, tokens, 768]."""
        path = "encoder.bert.embeddings"
        word, position, kind = (self.weights[f"{path}.{name}_embeddings.weight"] for name in EMBEDDED)
        hidden = self.layer_norm(f"{path}.LayerNorm", word[tokens] + kind[0] + position[: tokens.shape[1]], 1e-12)
        hidden = self.linear("encoder.bert.encoder.embedding_hidden_mapping_in", hidden)
        for _ in range(ALBERT_LAYERS):
            hidden = self.albert_layer(hidden)
        return hidden

    def albert_layer(self, hidden: Tensor) -> Tensor:
        heads = [
            self.linear(f"{ALBERT}.attention.{name}", hidden).unflatten(-1, (ALBERT_HEADS, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        ]
        context = F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        attended = self.linear(f"{ALBERT}.attention.dense", context)
        hidden = self.layer_norm(f"{ALBERT}.attention.LayerNorm", attended + hidden, 1e-12)
        inner = F.gelu(self.linear(f"{ALBERT}.ffn", hidden), approximate="tanh")
        out = self.linear(f"{ALBERT}.ffn_output", inner)
        return self.layer_norm(f"{ALBERT}.full_layer_layer_norm", out + hidden, 1e-12)

    def prosody_features(self, hidden: Tensor, style: Tensor) -> Tensor:
        """[batch, tokens, 512] -> [batch, tokens, 640]: three LSTMs, each followed by a norm that the style scales."""
        path = "encoder.predictor.text_encoder.lstms"
        wide = style[:, None].expand(-1, hidden.shape[1], -1)
        hidden = torch.cat([hidden, wide], -1)
        for layer in (0, 2, 4):
            hidden = self.lstms[f"{path}.{layer}"](hidden)[0]
            scale, shift = self.linear(f"{path}.{layer + 1}.fc", style)[:, None].chunk(2, -1)
            hidden = (1 + scale) * F.layer_norm(hidden, hidden.shape[-1:]) + shift
            hidden = torch.cat([hidden, wide], -1)
        return hidden

    def text_features(self, tokens: Tensor) -> Tensor:
        """[batch, tokens] -> [batch, tokens, 512]."""
        path = "encoder.text_encoder"
        hidden = self.weights[f"{path}.embedding.weight"][tokens].transpose(1, 2)
        for layer in range(3):
            hidden = self.conv(f"{path}.cnn.{layer}.0", hidden, padding=2).transpose(1, 2)
            gamma, beta = (self.weights[f"{path}.cnn.{layer}.1.{name}"] for name in ("gamma", "beta"))
            hidden = F.leaky_relu(F.layer_norm(hidden, hidden.shape[-1:], gamma, beta), 0.2).transpose(1, 2)
        return self.lstms[f"{path}.lstm"](hidden.transpose(1, 2))[0]

    # ---- speech ----

    def speak(self, features: Tensor, text: Tensor, style: Tensor) -> Tensor:
        """float32 samples at 24 kHz, [batch, 600 * frames].

        Args: features: [batch, frames, 640] and text: [batch, frames, 512], each token's repeated for its duration.
            style: [batch, 256].
        """
        voice, prosody = style[:, :STYLE_WIDTH], style[:, STYLE_WIDTH:]
        hidden = self.lstms["encoder.predictor.shared"](features)[0].transpose(1, 2)
        pitch, energy = self.curve("F0", hidden, prosody), self.curve("N", hidden, prosody)  # [batch, 1, 2 * frames]
        return self.generate(self.decode(text.transpose(1, 2), pitch, energy, voice), pitch[:, 0], voice)

    def curve(self, name: str, hidden: Tensor, style: Tensor) -> Tensor:
        """Pitch (`F0`) or energy (`N`)."""
        for block in range(3):
            hidden = self.style_block(f"encoder.predictor.{name}.{block}", hidden, style)
        return self.conv(f"encoder.predictor.{name}_proj", hidden)

    def decode(self, text: Tensor, pitch: Tensor, energy: Tensor, style: Tensor) -> Tensor:
        """[batch, 512, frames] -> [batch, 512, 2 * frames]."""
        path = "decoder.decoder"
        pitch = self.conv(f"{path}.F0_conv", pitch, stride=2, padding=1)
        energy = self.conv(f"{path}.N_conv", energy, stride=2, padding=1)
        hidden = self.style_block(f"{path}.encode", torch.cat([text, pitch, energy], 1), style)
        beside = [self.conv(f"{path}.asr_res.0", text), pitch, energy]
        for block in range(4):
            hidden = self.style_block(f"{path}.decode.{block}", torch.cat([hidden, *beside], 1), style)
        return hidden

    def generate(self, hidden: Tensor, pitch: Tensor, style: Tensor) -> Tensor:
        """Samples from the decoder's output and the pitch in Hz ([batch, 2 * frames])."""
        source = self.source_spectrum(pitch)
        for stage, (factor, step) in enumerate(((10, 6), (6, 1))):
            beside = self.conv(f"{GENERATOR}.noise_convs.{stage}", source, stride=step, padding=step // 2)
            beside = self.snake_block(f"{GENERATOR}.noise_res.{stage}", beside, style)
            weight, bias = (
                self.weights[f"{GENERATOR}.ups.{stage}.weight"],
                self.weights[f"{GENERATOR}.ups.{stage}.bias"],
            )
            hidden = F.leaky_relu(hidden, 0.1)
            hidden = F.conv_transpose1d(hidden, weight, bias, stride=factor, padding=factor // 2)
            if stage == 1:
                hidden = F.pad(hidden, (1, 0), mode="reflect")
            hidden = hidden + beside
            blocks = [f"{GENERATOR}.resblocks.{3 * stage + kernel}" for kernel in range(3)]
            hidden = sum(self.snake_block(block, hidden, style) for block in blocks) / 3
        return self.samples(self.conv(f"{GENERATOR}.conv_post", F.leaky_relu(hidden, 0.01), padding=3))

    def source_spectrum(self, pitch: Tensor) -> Tensor:
        """Magnitudes and phases of the voice's harmonics, [batch, 22, 120 * frames + 1]; zero where unvoiced."""
        each = SAMPLING_RATE // 80
        turns = (pitch[..., None] * self.harmonics / SAMPLING_RATE).frac_()
        turns = torch.where(turns < 0, turns + 1, turns).cumsum(1).transpose(1, 2)
        waves = F.interpolate(turns * (2 * torch.pi * each), scale_factor=float(each), mode="linear").sin_()
        voiced = (pitch > 10).to(waves.dtype).repeat_interleave(each, 1)
        waves = (waves * 0.1 * voiced[:, None]).transpose(1, 2)
        source = self.linear(f"{GENERATOR}.m_source.l_linear", waves)[..., 0].tanh_()
        source = F.pad(source[:, None], (FFT_SIZE // 2, FFT_SIZE // 2), mode="reflect")[:, 0]
        spectrum = torch.stft(source, FFT_SIZE, FFT_HOP, window=self.window, center=False, return_complex=True)
        return torch.cat([spectrum.abs(), angle(spectrum)], 1)

    def samples(self, hidden: Tensor) -> Tensor:
        """[batch, 22, steps] -> [batch, 5 * (steps - 1)]: log-magnitudes and phases into a waveform."""
        size = FFT_SIZE // 2 + 1
        magnitude, phase = hidden[:, :size].exp(), hidden[:, size:].sin()
        spectrum = torch.cat([magnitude * phase.cos(), magnitude * phase.sin()], 1).transpose(1, 2)
        pieces = (spectrum @ self.weights[f"{GENERATOR}.stft.istft.stft.inverse_basis"][:, 0]).transpose(1, 2)
        length = FFT_HOP * (pieces.shape[-1] - 1) + FFT_SIZE
        wave = F.fold(pieces, (1, length), (1, FFT_SIZE), stride=(1, FFT_HOP))[:, 0, 0]
        # As in the ONNX file: the sum of the windows divides the first samples alone.
        sums = self.weights[f"{GENERATOR}.stft.istft.stft.window_sum"]
        wave[:, :FFT_SIZE] /= torch.where(sums > 1e-37, sums, 1.0)
        return wave[:, FFT_SIZE // 2 : -FFT_SIZE // 2] * (FFT_SIZE / FFT_HOP)

    # ---- parts ----

    def linear(self, path: str, hidden: Tensor) -> Tensor:
        out = hidden @ self.weights[f"{path}.weight"]
        bias = self.weights.get(f"{path}.bias")
        return out if bias is None else out + bias

    def conv(self, path: str, hidden: Tensor, stride: int = 1, padding: int = 0, dilation: int = 1) -> Tensor:
        weight, bias = self.weights[f"{path}.weight"], self.weights.get(f"{path}.bias")
        return F.conv1d(hidden, weight, bias, stride, padding, dilation)

    def layer_norm(self, path: str, hidden: Tensor, epsilon: float) -> Tensor:
        return F.layer_norm(
            hidden, hidden.shape[-1:], self.weights[f"{path}.weight"], self.weights[f"{path}.bias"], epsilon
        )

    def style_norm(self, path: str, hidden: Tensor, style: Tensor) -> Tensor:
        """Each channel of each clip to mean 0 and variance 1, then scaled and shifted as the style says."""
        scale, shift = self.linear(f"{path}.fc", style).chunk(2, 1)
        flat = hidden.reshape(1, -1, hidden.shape[-1])
        scale, shift = (1 + scale).reshape(-1), shift.reshape(-1)
        return torch.native_batch_norm(flat, scale, shift, None, None, True, 0.0, 1e-5)[0].view_as(hidden)

    def style_block(self, path: str, hidden: Tensor, style: Tensor) -> Tensor:
        """Residual block of the decoder and the curves; twice as long where it has weights to lengthen (`pool`)."""
        longer = f"{path}.pool.weight" in self.weights
        beside = hidden.repeat_interleave(2, -1) if longer else hidden
        if f"{path}.conv1x1.weight" in self.weights:
            beside = self.conv(f"{path}.conv1x1", beside)
        hidden = F.leaky_relu(self.style_norm(f"{path}.norm1", hidden, style), 0.2)
        if longer:
            hidden = lengthened(hidden, self.weights[f"{path}.pool.weight"], self.weights[f"{path}.pool.bias"])
        hidden = self.conv(f"{path}.conv1", hidden, padding=1)
        hidden = F.leaky_relu(self.style_norm(f"{path}.norm2", hidden, style), 0.2)
        return (self.conv(f"{path}.conv2", hidden, padding=1) + beside) / 2**0.5

    def snake_block(self, path: str, hidden: Tensor, style: Tensor) -> Tensor:
        """Residual block of the generator."""
        for layer, dilation in enumerate(DILATIONS):
            inner = hidden
            for half, step in ((1, dilation), (2, 1)):
                inner = self.style_norm(f"{path}.adain{half}.{layer}", inner, style)
                inner = snake(inner, self.weights[f"{path}.alpha{half}.{layer}"])
                name = f"{path}.convs{half}.{layer}"
                padding = step * (self.weights[f"{name}.weight"].shape[-1] - 1) // 2
                inner = self.conv(name, inner, padding=padding, dilation=step)
            hidden = hidden + inner
        return hidden


def snake(hidden: Tensor, alpha: Tensor) -> Tensor:
    """x + sin²(alpha * x) / alpha."""
    wave = (hidden * alpha).sin_()
    return torch.addcmul(hidden, wave, wave / alpha)


def lengthened(hidden: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Transposed convolution of each channel by itself: kernel 3, stride 2, padding 1, output padding 1."""
    first, middle, last = weight[:, 0].T[..., None]  # [channels, 1] each
    even = hidden * middle
    odd = hidden * last + F.pad(hidden[..., 1:], (0, 1)) * first
    return torch.stack([even, odd], -1).flatten(2) + bias[:, None]


def angle(spectrum: Tensor) -> Tensor:
    """Phase in (-pi, pi], with pi for a negative number whose imaginary part is 0 or -0, and 0 for 0."""
    real, imaginary = spectrum.real, spectrum.imag
    phase = torch.atan(imaginary / torch.where((real == 0) & (imaginary == 0), 1.0, real))
    turned = torch.where(imaginary >= 0, phase + torch.pi, phase - torch.pi)
    return torch.where(real < 0, turned, phase)
