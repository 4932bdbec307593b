//! `serve`: starts the server and shuts it down gracefully.

use std::future;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;

use crate::app::{ApiKeys, App, check_limits};
use crate::config::{Args, Config, KeyLimitsTable};
use crate::error::{Error, Kind, Result};
use crate::http::{self, Listener, Tls};
use crate::telemetry;

/// Serves until Ctrl-C or SIGTERM, and loads the models in the background. The first signal shuts the
/// server down gracefully, the second ends the process at once.
///
/// # Errors
/// When the address is in use, or the only chat model cannot be loaded.
pub fn serve(config: &Config, n_threads: usize) -> Result<()> {
    let started = Instant::now();
    // Bind first: a port in use must not cost a download.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|e| Error::internal(format!("cannot start the HTTP threads: {e}")))?;
    let address = SocketAddr::new(config.host, config.port);
    let listener = runtime.block_on(listen_on(address))?;
    let address = listener.local_addr().unwrap_or(address);
    // A socket of the service manager may accept other machines than --host says.
    let config = &Config { host: address.ip(), port: address.port(), ..config.clone() };
    let tls = config.tls.clone().map(Tls::load).transpose()?;
    let app = App::new(config)?;
    let result = runtime.block_on(async {
        let signal = shutdown_signal(app.clone(), config.limits.drain_delay)?;
        reload_on_hangup(app.clone(), tls.clone())?;
        // Whoever reads this may send a signal at once.
        let scheme = if tls.is_some() { "https" } else { "http" };
        tracing::info!(threads = n_threads, "listening on {scheme}://{address}");
        let preload = {
            let (app, all) = (app.clone(), config.preload);
            tokio::task::spawn_blocking(move || app.preload(all))
        };
        let (failed, failure) = oneshot::channel();
        let shutdown = async {
            let loaded = async {
                match preload.await {
                    Ok(Ok(())) => {
                        tracing::info!(startup_ms = started.elapsed().as_millis(), "ready");
                        notify_service_manager(NotifyState::Ready);
                    }
                    Ok(Err(e)) => return e,
                    Err(e) => return Error::internal(format!("loading the models failed: {e}")),
                }
                future::pending().await
            };
            tokio::select! {
                delay = signal => delay,
                e = loaded => {
                    // The receiver is gone only if the server has ended already.
                    let _ = failed.send(e);
                    Duration::ZERO
                }
            }
        };
        http::serve(Listener::new(listener, tls), app.clone(), shutdown).await;
        // Waits for the disk.
        let _ = tokio::task::spawn_blocking(move || app.metering().finish()).await;
        failure.await.map_or(Ok(()), Err)
    });
    // Do not wait for running downloads.
    runtime.shutdown_background();
    result
}

/// Time to write what has been counted after a second signal.
const FINISH_TIMEOUT: Duration = Duration::from_secs(1);

/// Completes on the first Ctrl-C or SIGTERM with the time to keep accepting requests: `drain_delay` on
/// SIGTERM, since a load balancer routes requests here until it sees `/health` fail, and none on Ctrl-C,
/// since a user is waiting.
fn shutdown_signal(app: App, drain_delay: Duration) -> Result<impl Future<Output = Duration>> {
    let (mut interrupt, mut terminate) = (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?);
    Ok(async move {
        let delay = tokio::select! {
            _ = interrupt.recv() => Duration::ZERO,
            _ = terminate.recv() => drain_delay,
        };
        notify_service_manager(NotifyState::Stopping);
        tokio::spawn(async move {
            tokio::select! { _ = interrupt.recv() => {}, _ = terminate.recv() => {} }
            tracing::warn!("second signal received, exiting at once");
            // What is counted must not be lost, but a disk that hangs must not hold the process up.
            let finish = tokio::task::spawn_blocking(move || app.metering().finish());
            let _ = tokio::time::timeout(FINISH_TIMEOUT, finish).await;
            telemetry::flush_log();
            std::process::exit(130);
        });
        delay
    })
}

/// A socket that the service manager passes to this process (socket activation), or one at `address`.
///
/// # Errors
/// When the address is in use, or the passed socket cannot be used.
async fn listen_on(address: SocketAddr) -> Result<TcpListener> {
    let passed = ListenFd::from_env().take_tcp_listener(0).and_then(|passed| {
        let Some(socket) = passed else { return Ok(None) };
        socket.set_nonblocking(true)?;
        TcpListener::from_std(socket).map(Some)
    });
    let passed = passed.map_err(|e| {
        let message =
            format!("cannot use the socket of the service manager: {e}; set ListenStream to an address");
        Error::new(Kind::Config, message)
    })?;
    if let Some(listener) = passed {
        return Ok(listener);
    }
    TcpListener::bind(address).await.map_err(|e| {
        Error::new(
            Kind::Config,
            format!("cannot listen on {address}: {e}; choose another address with --host and --port"),
        )
    })
}

/// Tells the service manager, if there is one, about the state of the process.
fn notify_service_manager(state: NotifyState<'_>) {
    if let Err(e) = sd_notify::notify(&[state]) {
        tracing::warn!(error = %e, "the service manager could not be notified");
    }
}

/// Reads the API keys, their limits and the TLS certificate again on every SIGHUP. After a failure, the old ones stay in
/// use.
fn reload_on_hangup(app: App, tls: Option<Tls>) -> Result<()> {
    let mut hangup = listen(SignalKind::hangup())?;
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            report_reload("API keys and limits", reload_keys(&app));
            if let Some(tls) = &tls {
                report_reload("TLS certificate", tls.reload());
            }
        }
    });
    Ok(())
}

fn reload_keys(app: &App) -> Result<()> {
    let args = Args::serve_options_again()?;
    let newer = ApiKeys::new(&args.api_key, args.api_key_file.as_deref())?;
    let limits = args.limits.as_deref().map(KeyLimitsTable::read).transpose()?.unwrap_or_default();
    check_limits(&limits, &newer)?;
    app.api_keys().replace(&newer)?;
    app.metering().replace_limits(limits);
    Ok(())
}

fn report_reload(what: &str, result: Result<()>) {
    match result {
        Ok(()) => tracing::info!("{what} reloaded"),
        Err(e) => tracing::error!(error = %e, "{what} not reloaded; what was loaded before stays in use"),
    }
}

fn listen(kind: SignalKind) -> Result<Signal> {
    signal(kind).map_err(|e| Error::internal(format!("cannot listen for signals: {e}")))
}
