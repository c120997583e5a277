#!/usr/bin/env python3
"""Makes the models of this folder: valid ONNX, admitted by any linter that looks at a file alone, and hostile to whoever loads
them, since engines compute constants while they load. Needs the package onnx; the files are committed.

greedy.onnx    256 GiB of padding: the allocation that fails ends the process, whoever it is
endless.onnx   some minutes of matrix products of constants
"""

import pathlib

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

HERE = pathlib.Path(__file__).parent


def save(name, nodes, initializers):
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph(nodes, name, [x], [y], initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model)
    onnx.save(model, HERE / f"{name}.onnx")


def constant(name, shape, value):
    shape = numpy_helper.from_array(np.array(shape, np.int64), f"{name}_shape")
    value = helper.make_tensor("value", TensorProto.FLOAT, [1], [value])
    return shape, helper.make_node("ConstantOfShape", [shape.name], [name], name=name, value=value)


def summed(name):
    return [helper.make_node("ReduceSum", [name], ["sum"], keepdims=0), helper.make_node("Add", ["x", "sum"], ["y"])]


one = numpy_helper.from_array(np.ones((1, 1, 1), np.float32), "one")
pads = numpy_helper.from_array(np.array([0, 0, 0, 1 << 14, 1 << 14, 1 << 8], np.int64), "pads")
save("greedy", [helper.make_node("Pad", ["one", "pads"], ["greedy"], name="greedy"), *summed("greedy")], [one, pads])

shape, first = constant("product_0", [2048, 2048], 1e-4)
products = [helper.make_node("MatMul", [f"product_{n}", "product_0"], [f"product_{n + 1}"]) for n in range(1000)]
save("endless", [first, *products, *summed("product_1000")], [shape])
