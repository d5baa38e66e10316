mod cases;
mod detection;
mod functions;
mod grammar;
mod parsing;
