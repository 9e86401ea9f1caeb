"""Exported program -> one ONNX file whose weights are arguments; no weights are ever allocated."""

from pathlib import Path

import onnx
import torch
from onnx import TensorProto, helper

from vino_export.functions import IMPORTS, OPSET, bodies, translations
from vino_export.notes import without_library_notes
from vino_export.program import export_program
from vino_rt.backends.base import Kind


def write_onnx(kind: Kind, path: Path) -> None:
    """Export a kind to `path`: inputs in the spec's order, then one input per weight under its parameter name."""
    with without_library_notes():
        program = torch.onnx.export(
            export_program(kind),
            opset_version=OPSET,
            custom_translation_table=dict(translations()),
            optimize=False,
            input_names=[spec.name for spec in kind.spec.inputs],
            output_names=[spec.name for spec in kind.spec.outputs],
            verbose=False,
        )
    assert program is not None
    program.save(str(path), include_initializers=False)
    model = onnx.load(str(path), load_external_data=False)
    _strip_metadata(model)
    with torch.device("meta"):
        weights = kind.build().state_dict()
    used = {name for node in model.graph.node for name in node.input}
    for name, tensor in weights.items():
        assert name in used, f"{kind.name}: parameter {name} is not used by the exported graph"
        model.graph.input.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, list(tensor.shape)))
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in IMPORTS.items())
    model.functions.extend(bodies())
    onnx.checker.check_model(model)
    onnx.save(model, str(path))


def _strip_metadata(model: onnx.ModelProto) -> None:
    """Drop stack traces: most of the file, and they name paths of the building machine."""
    del model.graph.metadata_props[:]
    del model.metadata_props[:]
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    del model.graph.value_info[:]
    for value in (*model.graph.input, *model.graph.output):
        del value.metadata_props[:]
