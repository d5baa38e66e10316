//! `biplane serve` and `biplane mlx`

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use biplane::BackendKind;
use futures::FutureExt;
use tokio::net::TcpListener;

use crate::{
    http::{self, App, Mcp, Security},
    registry::{self, Entry, First, Registry, Source, Stage, Status},
    report,
    serve_args::{MlxArgs, ServeArgs, ServeOptions},
};

/// Serves models.
pub fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let backend = args.backend.kind()?;
    start(&args.options, backend, false)
}

/// Serves models on MLX.
pub fn mlx(args: MlxArgs) -> anyhow::Result<()> {
    let mut options = args.options;
    if let Some(device) = args.mlx_device {
        options.model.device = device;
    }
    start(&options, BackendKind::Mlx, !args.mlx_lazy_eval)
}

fn start(options: &ServeOptions, backend: BackendKind, eager: bool) -> anyhow::Result<()> {
    let (models, folders) = models(options, backend, eager)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("starting the server's threads")?;
    let result = runtime.block_on(run(options, backend, models, folders));
    // A model that is still being loaded must not hold up the end.
    runtime.shutdown_background();
    result
}

/// The models by their names, with what loads each; quantization is the registry's matter. Folders are
/// looked through by the second part again.
fn models(
    options: &ServeOptions,
    backend: BackendKind,
    eager: bool,
) -> anyhow::Result<(Vec<Entry>, Option<registry::Find>)> {
    let name = options.model_name.as_deref();
    let sources = registry::sources(
        &options.models,
        &options.models_dir,
        name,
        registry::Empty::Refused,
    )?;
    let several = sources.len() > 1 || !options.models_dir.is_empty();
    if several && options.chat_template.is_some() {
        bail!("--chat-template is for one model; serve that model by itself");
    }
    if several && options.engine.record.is_some() {
        bail!(
            "--record is for one model: a recording does not say which; serve that model by itself"
        );
    }
    let mut load = options.model.clone();
    load.isq.isq = None;
    let engine = options.engine(sources.len());
    let chat_template = options.chat_template.clone();
    let entry = move |source: Source| {
        let mut builder = load
            .builder(source.model.as_deref(), backend)
            .with_engine(engine.clone());
        if backend == BackendKind::Mlx {
            builder = builder.with_eager_evaluation(eager);
        }
        if let Some(file) = &chat_template {
            builder = builder.with_chat_template(file);
        }
        let place = source.model.filter(|_| source.found).map(PathBuf::from);
        Entry {
            name: source.name,
            builder,
            place,
        }
    };
    let entries = sources.into_iter().map(&entry).collect();
    if options.models_dir.is_empty() {
        return Ok((entries, None));
    }
    let (named, folders) = (options.models.clone(), options.models_dir.clone());
    let find = move || {
        let now = registry::sources(&named, &folders, None, registry::Empty::Allowed)?;
        let found = now.into_iter().filter(|source| source.found);
        Ok(found.map(&entry).collect())
    };
    Ok((entries, Some(Box::new(find))))
}

async fn run(
    options: &ServeOptions,
    backend: BackendKind,
    models: Vec<Entry>,
    folders: Option<registry::Find>,
) -> anyhow::Result<()> {
    let (listener, address) = listen(options, options.port).await?;
    let second = match options.mcp.mcp_port {
        Some(port) => Some(listen(options, port).await?),
        None => None,
    };
    let url = url(options, address);
    // Of a folder none is more wanted than the others.
    let lazy = options.lazy || (options.models.is_empty() && !options.models_dir.is_empty());
    report::note(&match lazy {
        false => format!("listening on {url} while the model is loaded"),
        true => format!("listening on {url}; models are loaded when they are asked for"),
    });
    let mcp = Arc::new(Mcp::default());
    if let Some(first) = models.first() {
        let first = first.builder.clone();
        let first = match options.model.isq.isq {
            Some(isq) => first.with_isq(isq),
            None => first,
        };
        options.mcp.start(&mcp, first)?;
    }
    let equips = Arc::clone(&mcp);
    let limits = options.limits(&options.engine(models.len()));
    let registry = Registry::new(
        models,
        backend,
        options.model.isq.isq,
        limits,
        Arc::new(move |model| Arc::clone(&equips).equip(model).boxed()),
        folders,
    );
    if let Some(seconds) = options.idle_unload {
        registry.unload_idle(Duration::from_secs(seconds.into()));
    }
    // Before anybody can ask: what is not said to come would be loaded by the first request.
    let first = match lazy {
        true => None,
        false => Some(registry.begin_first()?),
    };
    let security = Security {
        key: options.api_key.clone(),
        local: address.ip().is_loopback(),
        origins: options.cors_origin.clone(),
    };
    let app = App::new(registry, mcp, security);
    let failed = async {
        match load(app.models.clone(), first).await {
            Ok(first) => {
                greet(&app, first, &url, options.api_key.is_some());
                std::future::pending().await
            }
            Err(error) => error,
        }
    };
    let mcp = async {
        if let Some((listener, address)) = second {
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

/// Loads the first model, unless none is to be loaded before it is asked for.
async fn load(registry: Registry, first: Option<First>) -> anyhow::Result<Option<Status>> {
    let first = match first {
        None => None,
        Some(first) => {
            let loading = registry.clone();
            let loading = tokio::spawn(async move { loading.load_first(first).await });
            Some(loading.await.context("loading the model")??)
        }
    };
    registry.look();
    Ok(first)
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
            "listening on {}:{port} (--port takes another, and 0 any that is free)",
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

fn greet(app: &App, first: Option<Status>, url: &str, has_key: bool) {
    let key = match has_key {
        true => " -H \"Authorization: Bearer $BIPLANE_API_KEY\"",
        false => "",
    };
    if let Some(Status {
        name,
        stage: Stage::Loaded { model, .. },
        ..
    }) = first
    {
        let info = model.info();
        report::note(&format!(
            "model    {name} ({}, {:.1}M parameters, {} of weights)",
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
        report::note(&format!(
            "context  {} tokens, keys and values as {}",
            info.context_length, info.kv_format
        ));
    }
    let all = app.models.list();
    let model = match &all[..] {
        [_] => String::new(),
        all => {
            report::note(&format!("models   {}; see {url}/v1/models", all.len()));
            let name = all.first().map_or("", |status| &status.name);
            format!("\"model\": {name:?}, ")
        }
    };
    report::note(&format!("ready    {url}"));
    report::note(&format!(
        "try      curl {url}/v1/chat/completions{key} -d '{{{model}\"messages\": [{{\"role\": \"user\", \"content\": \"Hello\"}}]}}'"
    ));
}
