//! `biplane serve` and `biplane mlx`

use std::{net::SocketAddr, path::Path, sync::Arc};

use anyhow::{Context, bail};
use biplane::{BackendKind, Model, ModelBuilder};
use tokio::net::TcpListener;

use crate::{
    http::{self, App, Security, Shared},
    report::{self, Progress},
    serve_args::{MlxArgs, ServeArgs, ServeOptions},
};

/// Serves a model.
pub fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let backend = match args.backend {
        Some(backend) => backend,
        None => BackendKind::default_here()?,
    };
    let builder = args.options.model.builder(backend);
    start(&args.options, builder)
}

/// Serves a model on MLX.
pub fn mlx(args: MlxArgs) -> anyhow::Result<()> {
    let mut options = args.options;
    if let Some(device) = args.mlx_device {
        options.model.device = device;
    }
    let builder = options.model.builder(BackendKind::Mlx);
    start(&options, builder.with_eager_evaluation(!args.mlx_lazy_eval))
}

fn start(options: &ServeOptions, builder: ModelBuilder) -> anyhow::Result<()> {
    let mut builder = builder.with_engine(options.engine());
    if let Some(file) = &options.chat_template {
        builder = builder.with_chat_template(file);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the server's threads")?;
    let result = runtime.block_on(run(options, builder));
    // A model that is still being loaded must not hold up the end.
    runtime.shutdown_background();
    result
}

async fn run(options: &ServeOptions, builder: ModelBuilder) -> anyhow::Result<()> {
    let (listener, address) = listen(options, options.port).await?;
    let name = options.model_name.clone();
    let name = name.unwrap_or_else(|| name_of(options.model.model.as_deref()));
    let app = App::new(
        name,
        Security {
            key: options.api_key.clone(),
            local: address.ip().is_loopback(),
            origins: options.cors_origin.clone(),
        },
    );
    let mcp = match options.mcp.mcp_port {
        Some(port) => Some(listen(options, port).await?),
        None => None,
    };
    let url = url(options, address);
    report::note(&format!("listening on {url} while the model is loaded"));
    options.mcp.start(&app, &builder)?;
    let loading = tokio::spawn(load(builder, Arc::clone(&app)));
    let failed = async {
        match loading.await {
            Ok(Ok(model)) => {
                greet(&app, &model, &url, options.api_key.is_some());
                std::future::pending().await
            }
            Ok(Err(error)) => error.into(),
            Err(error) => anyhow::Error::new(error).context("loading the model"),
        }
    };
    let mcp = async {
        if let Some((listener, address)) = mcp {
            report::note(&format!("MCP      http://{address}/mcp"));
            http::mcp::serve(listener, Arc::clone(&app), http::stopped()).await;
        }
    };
    let serving = http::serve(listener, Arc::clone(&app), http::stopped());
    tokio::select! {
        ((), ()) = async { tokio::join!(serving, mcp) } => Ok(()),
        error = failed => Err(error),
    }
}

async fn load(builder: ModelBuilder, app: Shared) -> biplane::Result<Model> {
    let progress = Progress::new(false);
    let (told, show) = (Arc::clone(&app), progress.shower());
    let builder = builder.with_progress(move |p| {
        told.loading(p);
        show(p);
    });
    let model = builder.build().await?;
    progress.clear();
    let model = app.mcp.equip(model).await;
    app.loaded(model.clone());
    // The first constrained answer must not wait for it.
    let warm = model.clone();
    tokio::task::spawn_blocking(move || {
        if let Err(error) = warm.prepare_constraints() {
            tracing::warn!("answers cannot be constrained: {error}");
        }
    });
    Ok(model)
}

async fn listen(options: &ServeOptions, port: u16) -> anyhow::Result<(TcpListener, SocketAddr)> {
    let place = (options.host.trim_matches(['[', ']']), port);
    let addresses = tokio::net::lookup_host(place).await;
    let addresses: Vec<SocketAddr> = addresses
        .with_context(|| format!("--host {}", options.host))?
        .collect();
    let open = addresses.iter().any(|address| !address.ip().is_loopback());
    let key = options.api_key.as_deref();
    if key.is_some_and(|key| key.is_empty() || !key.bytes().all(|b| b.is_ascii_graphic())) {
        bail!("--api-key is empty or has something else than letters, digits and signs of ASCII");
    }
    if open && key.is_none() && !options.insecure {
        bail!(
            "--host {} lets others than this machine ask; set --api-key KEY, or --insecure if \
             everyone may",
            options.host
        );
    }
    let listener = TcpListener::bind(addresses.as_slice()).await;
    let listener = listener.with_context(|| {
        format!(
            "listening on {}:{port}; another port may be free",
            options.host
        )
    })?;
    let address = listener.local_addr().context("the server's own address")?;
    Ok((listener, address))
}

/// Where a browser finds the server.
fn url(options: &ServeOptions, address: SocketAddr) -> String {
    match (address.ip().is_unspecified(), options.host.as_str()) {
        (true, _) => format!("http://localhost:{}", address.port()),
        (false, "localhost") => format!("http://localhost:{}", address.port()),
        _ => format!("http://{address}"),
    }
}

/// What clients call the model: a file's or directory's name, or its id.
pub fn name_of(model: Option<&str>) -> String {
    let Some(model) = model else {
        return "SmolLM2-135M-Instruct".into();
    };
    let path = Path::new(model);
    if !path.exists() {
        return model.to_owned();
    }
    let whole = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let name = match whole.extension().is_some_and(|e| e == "gguf") {
        true => whole.file_stem(),
        false => whole.file_name(),
    };
    name.map_or_else(
        || model.to_owned(),
        |name| name.to_string_lossy().into_owned(),
    )
}

fn greet(app: &App, model: &Model, url: &str, has_key: bool) {
    let info = model.info();
    let key = match has_key {
        true => " -H \"Authorization: Bearer $BIPLANE_API_KEY\"",
        false => "",
    };
    report::note(&format!(
        "model    {} ({}, {:.1}M parameters, {} of weights)",
        app.name,
        info.architecture,
        info.parameters as f64 / 1e6,
        report::bytes(info.weight_bytes as u64),
    ));
    report::note(&format!(
        "runs     {} on {}, {}, {} threads",
        info.backend,
        info.device,
        info.dtype.name(),
        model.threads(),
    ));
    report::note(&format!("context  {} tokens", info.context_length));
    report::note(&format!("ready    {url}"));
    report::note(&format!(
        "try      curl {url}/v1/chat/completions{key} -d '{{\"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'"
    ));
}
