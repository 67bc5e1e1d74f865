//! Carts over gRPC, in every kind of streaming.

use std::pin::Pin;
use std::time::Duration;

use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

/// Generated from `cart.proto`.
#[allow(missing_docs, clippy::all)]
pub mod api {
    tonic::include_proto!("shop");
}

use api::cart_server::{Cart, CartServer};
use api::{CartReply, CartRequest, Item};

struct Carts {
    version: String,
}

impl Carts {
    fn reply(&self, items: u32) -> CartReply {
        CartReply {
            items,
            version: self.version.clone(),
        }
    }
}

type Replies = Pin<Box<dyn Stream<Item = Result<CartReply, Status>> + Send>>;

#[tonic::async_trait]
impl Cart for Carts {
    type WatchStream = Replies;
    type ChatStream = Replies;

    async fn get(&self, request: Request<CartRequest>) -> Result<Response<CartReply>, Status> {
        if request.get_ref().user.is_empty() {
            return Err(Status::invalid_argument("whose cart?"));
        }
        Ok(Response::new(self.reply(3)))
    }

    async fn watch(&self, _: Request<CartRequest>) -> Result<Response<Replies>, Status> {
        let (reply, mut items) = (self.reply(0), 0);
        let ticks = tokio::time::interval(Duration::from_millis(100));
        let replies = tokio_stream::wrappers::IntervalStream::new(ticks).map(move |_| {
            items += 1;
            Ok(CartReply {
                items,
                ..reply.clone()
            })
        });
        Ok(Response::new(Box::pin(replies)))
    }

    async fn add_all(
        &self,
        request: Request<Streaming<Item>>,
    ) -> Result<Response<CartReply>, Status> {
        let mut items = request.into_inner();
        let mut count = 0;
        while items.next().await.transpose()?.is_some() {
            count += 1;
        }
        Ok(Response::new(self.reply(count)))
    }

    async fn chat(&self, request: Request<Streaming<Item>>) -> Result<Response<Replies>, Status> {
        let version = self.version.clone();
        let mut count = 0;
        let replies = request.into_inner().map(move |item| {
            count += 1;
            item.map(|_| CartReply {
                items: count,
                version: version.clone(),
            })
        });
        Ok(Response::new(Box::pin(replies)))
    }
}

/// Serves until the process ends.
pub async fn serve(port: u16, version: String) -> anyhow::Result<()> {
    tonic::transport::Server::builder()
        .add_service(CartServer::new(Carts { version }))
        .serve((std::net::Ipv6Addr::UNSPECIFIED, port).into())
        .await?;
    Ok(())
}
