"""A model whose declared shapes are wrong: onnxruntime reuses memory by what is declared."""

import numpy as np
import onnx
import onnx.parser

import burnish

# Some exporters declare the positions' rows with the batch that they get only by the Add.
POSITIONS = """
<ir_version: 10, opset_import: ["" : 20]>
positions (int64[batch, seq] ids, int64[batch, seq] kinds) => (float[batch, seq, 8] z)
<float[batch, seq, 8] rows, float[40, 8] words, float[40, 8] places, float[2, 8] types>
{ zero = Constant<value = int64 {0}>()  one = Constant<value = int64 {1}>()
  first = Constant<value_ints = [0]>()
  shape = Shape(ids)  length = Gather(shape, one)  range = Range(zero, length, one)
  at = Unsqueeze(range, first)  rows = Gather(places, at)  word = Gather(words, ids)
  type = Gather(types, kinds)
  a = Add(word, rows)  z = Add(a, type) }
"""


def test_a_slice_of_positions_does_not_keep_a_false_batch() -> None:
    model = onnx.parser.parse_model(POSITIONS)
    rng = np.random.default_rng(0)
    for name, rows in (("words", 40), ("places", 40), ("types", 2)):
        table = rng.standard_normal((rows, 8)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(table, name))
    result = burnish.optimize(model, recipe="simplify-indices", measured=False)
    node = next(node for node in result.graph.node if node.op_type == "Slice")
    declared = {value.name: value.type.tensor_type.shape.dim for value in result.graph.value_info}
    assert node.output[0] not in declared or declared[node.output[0]][0].dim_value == 1
