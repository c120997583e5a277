//! Operators of our own, for models that tract 0.23 alone does not run: those of `ai.onnx.ml` that scikit-learn and the tree
//! libraries export, and replacements where tract's own refuse what ONNX allows.
//!
//! Not here: what can be said with operators that exist; that is `rewrite`. tract looks an operator up by its name alone, so
//! [`register`] also decides which of two is taken.

mod attributes;
mod barrier;
mod conditional;
mod encoders;
mod features;
mod kernel;
mod labels;
mod linear;
mod post;
mod squeeze;
mod trees;

use tract_onnx::Onnx;

pub(crate) use {barrier::BARRIER, squeeze::SQUEEZE_ONES};

/// Adds our operators to tract's.
pub(crate) fn register(onnx: &mut Onnx) {
    let register = &mut onnx.op_register;
    register.insert("ArrayFeatureExtractor", features::array_feature_extractor);
    register.insert("Binarizer", features::binarizer);
    register.insert("FeatureVectorizer", features::feature_vectorizer);
    register.insert("If", conditional::conditional);
    register.insert("Imputer", features::imputer);
    register.insert("LabelEncoder", encoders::label_encoder);
    register.insert("LinearClassifier", linear::classifier);
    register.insert("OneHotEncoder", encoders::one_hot_encoder);
    register.insert("Scaler", features::scaler);
    register.insert("SVMRegressor", linear::svm_regressor);
    register.insert("TreeEnsemble", trees::ensemble);
    register.insert("TreeEnsembleClassifier", trees::classifier);
    register.insert("TreeEnsembleRegressor", trees::regressor);
    register.insert(BARRIER, barrier::barrier);
    register.insert(SQUEEZE_ONES, squeeze::squeeze_ones);
}
