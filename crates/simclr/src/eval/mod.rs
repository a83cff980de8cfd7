//! How good is h? Frozen features under kNN, retrieval and linear classifiers, beside three controls; and protocols that
//! train: fine-tuning, here and on other data sets, the linear classifier on crops, the supervised baseline (spec 8, 15.0).

mod candidates; // learning rates and decays -> pairs to compare
pub mod compare; // results of several runs -> a table, a plot
pub mod features; // run folder -> frozen encoder; images -> h
pub mod foreign; // a peer's weights -> a run folder
mod frozen; // protocols on frozen features -> rows
mod history; // results -> one file for each set and way of evaluating it
mod identity; // a set -> what its figures are kept under
pub mod knn; // bank, queries -> labels by vote
mod label_sets; // columns of the table -> the images that have labels
pub mod layer; // h, z or a layer of the head
pub mod lbfgs; // convex functions -> their minima
pub mod linear; // h, labels -> linear classifier
mod logistic; // the classifier's objective
mod members; // labels and answers -> a figure by the set's metric
mod memory; // figures that are known already
pub mod per_class; // answers -> recalls, confusion matrix, AUROC
mod plot; // lines of accuracy by share of labels -> SVG
pub mod protocol; // run, data -> results
mod reading; // images -> features, in pieces that outlive a kill
pub mod recipes; // the run's configuration -> that of a protocol that trains
pub mod results; // results -> results.json, table
mod sets; // path -> labelled training and test part
mod significance; // answers of two classifiers -> p
pub mod splits; // labels -> hold-outs, folds, subsets
pub mod trained; // protocols that train -> rows
mod training; // configuration, images -> a trained model's figure
pub mod transfer; // frozen features of other data sets -> a table
pub mod transfer_finetune; // fine-tuning on other data sets -> the same table
